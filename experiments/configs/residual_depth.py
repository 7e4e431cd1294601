"""A hundred residual blocks: which scheme trains them, and the laws behind it.

    python -m experiments.residual_depth \
        --config=experiments/configs/residual_depth.py:quick

Forms (the part after the colon):

* ``quick``: 100 dense blocks, four rows, three learning rates, 40 steps, and the laws.
  Under a minute on two CPU cores.
* ``full``: dense and convolutional blocks, eight rows, four learning rates, three
  seeds, 300 steps. Dense blocks alone take six minutes, all about an hour.
* ``small``: ten blocks, for tests.
"""

from ml_collections import ConfigDict

from experiments.configs import unknown_form


def get_config(form: str = "quick") -> ConfigDict:
    """Returns the configuration of a form."""
    config = ConfigDict()
    config.networks = ("mlp",)  # and "cnn"
    config.depth = 100
    config.width = 64
    config.cnn_width = 8
    # A scheme; with "+bn", batch normalization in front of every ReLU.
    config.rows = ("kaiming_fan_in", "taki", "fixup", "kaiming_fan_in+bn")
    config.learning_rates = (1e-1, 1e-2, 1e-3)
    config.seeds = 1
    config.steps = 40
    config.batch = 64
    # Gaps fall as 1/width; products of many plain layers spread, so they are fewer.
    laws: dict = {
        "plain": (2.0,),
        "constants": (2.0,),
        "norms": ("tanh", "relu"),
    }
    laws |= {"width": 128, "draws": 40}
    laws |= {"plain_depth": 10, "plain_draws": 400}
    laws |= {"bn_width": 256, "bn_batch": 512, "bn_draws": 6}
    config.laws = ConfigDict(laws)
    if form == "full":
        config.networks = ("mlp", "cnn")
        config.rows = (
            "kaiming_fan_in",
            "lecun",
            "taki",
            "fixup",
            "skipinit",
            "kaiming_fan_in+bn",
            "lecun+bn",
            "taki+bn",
        )
        config.learning_rates = (1e-1, 1e-2, 1e-3, 1e-4)
        config.seeds = 3
        config.steps = 300
        config.laws.update(
            plain=(1.0, 2.0),
            plain_depth=20,
            plain_draws=2000,
            constants=(1.0, 2.0, 10.0),
            draws=400,
            bn_draws=32,
        )
    elif form == "small":
        config.depth = 10
        config.width = 16
        config.rows = ("taki", "skipinit", "taki+bn")
        config.learning_rates = (1e-2,)
        config.steps = 40
        config.laws.update(norms=("relu",))
        config.laws.update(width=64, draws=20, plain_depth=4, plain_draws=100)
        config.laws.update(bn_width=64, bn_batch=64, bn_draws=2)
    elif form != "quick":
        raise unknown_form(form, "residual_depth", "quick, full and small")
    return config
