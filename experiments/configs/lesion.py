"""Blocks deleted and exchanged in trained nets, and gradients by path length.

    python -m experiments.lesion --config=experiments/configs/lesion.py:quick

Forms (the part after the colon):

* ``quick``: 20 layers of width 8 on digits at 8 pixels, one seed, 150 steps. Under a
  minute on two CPU cores.
* ``full``: 56 layers of width 16, three seeds, 1,500 steps. About an hour.
* ``small``: 8 layers, for tests.
"""

from ml_collections import ConfigDict

from experiments.configs import unknown_form


def get_config(form: str = "quick") -> ConfigDict:
    """Returns the configuration of a form."""
    config = ConfigDict()
    config.networks = ("residual", "plain")
    config.depth = 20
    config.width = 8
    config.image_size = 8
    config.seeds = 1
    config.steps = 150
    config.batch = 64
    config.learning_rate = 0.05
    config.counts = (1, 2, 3, 4, 5, 6)  # blocks deleted, pairs exchanged
    config.samples = 5  # random choices of these
    config.path_images = 16
    config.path_samples = 8
    if form == "full":
        config.depth = 56
        config.width = 16
        config.seeds = 3
        config.steps = 1500
        config.counts = (1, 2, 3, 5, 8, 12, 16, 20, 24)
        config.samples = 20
        config.path_samples = 32
    elif form == "small":
        config.depth = 8
        config.width = 4
        config.steps = 5
        config.counts = (1,)
        config.samples = 2
        config.path_samples = 2
    elif form != "quick":
        raise unknown_form(form, "lesion", "quick, full and small")
    return config
