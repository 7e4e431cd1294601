"""Many configurations of one experiment, side by side.

    python -m experiments.sweep --config=experiments/configs/sweep.py:quick
    python -m experiments.sweep --config=experiments/configs/sweep.py:table4 \
        --scheduler=tcp://host:8786

Forms (the part after the colon):

* ``quick``: a small F34 on digits under two schemes. Under a
  minute on two CPU cores.
* ``table4``: the small Table 4, a point for every learning rate and seed.
* ``depth``, ``width``: second moments of residual blocks at three depths, and of F34 at
  four widths: `variance_curves`. Minutes.
* ``small``: four points of a second each, for tests.
"""

from ml_collections import ConfigDict

from experiments.configs import unknown_form


def get_config(form: str = "quick") -> ConfigDict:
    """Returns the configuration of a form."""
    config = ConfigDict()
    config.experiment = "train_classifier"
    config.form = "quick"
    # Fields that are the same everywhere, and the values that others take in turn.
    config.fixed = (("epochs", 2), ("model_args.width", 4))
    config.grid = (
        ("schemes", (("kaiming_fan_in",), ("asv_forward",))),
        ("learning_rates", ((1e-2,),)),
    )
    config.workers = 2  # at most as many as there are cores
    if form == "table4":
        config.form = "digits"
        config.grid = (
            ("learning_rates", ((1e-1,), (1e-2,), (1e-3,), (1e-4,))),
            ("first_seed", tuple(range(10))),
        )
        config.fixed = (("seeds", 1),)
        config.workers = 64
    elif form == "depth":
        config.experiment, config.form = "variance_curves", "blocks"
        config.fixed = ()
        config.grid = (("model_args.depth", (10, 30, 100)),)
    elif form == "width":
        config.experiment, config.form = "variance_curves", "small"
        config.fixed = (("draws", 16),)
        config.grid = (("model_args.width", (4, 8, 16, 32)),)
    elif form == "small":
        config.form = "small"
        config.fixed = (("schemes", ("glorot",)),)
        config.grid = (("learning_rates", ((1e-2,), (1e-3,))), ("first_seed", (0, 1)))
    elif form != "quick":
        raise unknown_form(form, "sweep", "quick, table4, depth, width and small")
    return config
