"""Plain nets against residual nets, by depth.

    python -m experiments.degradation --config=experiments/configs/degradation.py:quick

Forms (the part after the colon):

* ``quick``: 8 and 32 layers of width 4 on digits at 8 pixels, three seeds, 100 steps.
  Under a minute on two CPU cores.
* ``full``: 8 to 110 layers of width 16, five seeds, 1,500 steps. Hours.
* ``small``: one seed, five steps, for tests.
"""

from ml_collections import ConfigDict

from experiments.configs import unknown_form


def get_config(form: str = "quick") -> ConfigDict:
    """Returns the configuration of a form."""
    config = ConfigDict()
    config.networks = ("plain", "residual")
    config.depths = (8, 32)
    config.width = 4
    config.image_size = 8
    config.seeds = 3
    config.steps = 100
    config.batch = 64
    config.learning_rate = 0.05
    if form == "full":
        config.depths = (8, 20, 32, 44, 56, 110)
        config.width = 16
        config.seeds = 5
        config.steps = 1500
    elif form == "small":
        config.depths = (8,)
        config.networks = ("residual",)
        config.seeds = 1
        config.steps = 5
    elif form != "quick":
        raise unknown_form(form, "degradation", "quick, full and small")
    return config
