r"""How deep a plain convolutional net trains.

    python -m experiments.depth_record \
        --config=experiments/configs/depth_record.py:quick

Forms (the part after the colon):

* ``quick``: 10 and 100 layers of 8 channels on digits, 40 steps at most. Under a minute
  on two CPU cores.
* ``deep``: tanh, 1,000 layers of 8 channels, 20 steps at most. Two minutes.
* ``full``: 100, 1,000 and 10,000 layers of 16 channels, 2,000 steps at most. For an
  accelerator.
* ``small``: ten layers, for tests.
"""

from ml_collections import ConfigDict

from experiments.configs import unknown_form


def get_config(form: str = "quick") -> ConfigDict:
    """Returns the configuration of a form."""
    config = ConfigDict()
    config.depths = (10, 100)
    config.width = 8
    config.image_size = 8
    config.activations = ("tanh", "relu")
    config.laws = ("orthogonal", "gaussian")  # of the kernels, at the same variance
    config.sigma_b = 0.0045  # tanh's kernels are critical with it; ReLU's with 0
    config.learning_rates = (1e-2,)
    config.accuracy = 0.5  # of the training batches, over the last `window` steps
    config.window = 5
    config.steps = 40
    config.batch = 64
    config.seeds = 1
    if form == "full":
        config.depths = (100, 1000, 10000)
        config.width = 16
        config.learning_rates = (1e-2, 1e-3, 1e-4, 1e-5)
        config.steps = 2000
        config.seeds = 3
    elif form == "deep":
        config.depths = (1000,)
        config.activations = ("tanh",)
        config.learning_rates = (1e-3,)
        config.steps = 20
    elif form == "small":
        config.depths = (10,)
        config.activations = ("tanh",)
        config.laws = ("orthogonal",)
        config.learning_rates = (1e-2,)
    elif form != "quick":
        raise unknown_form(form, "depth_record", "quick, deep, full and small")
    return config
