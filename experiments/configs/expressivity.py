"""Every figure and table of expressivity.

    python -m experiments.expressivity \
        --config=experiments/configs/expressivity.py:quick --workdir=runs/expressivity

Forms (the part after the colon):

* ``quick``: under a minute on two CPU cores; ResNet-110's paths at 16 x 16 pixels.
* ``full``: more networks and paths, and 32 x 32 pixels; some minutes.
* ``small``: everything at its smallest, for tests.
"""

from ml_collections import ConfigDict

from experiments.configs import unknown_form


def get_config(form: str = "quick") -> ConfigDict:
    """Returns the configuration of a form."""
    config = ConfigDict()
    config.seed = 0
    config.networks = 30  # random networks per architecture on a line
    config.plane_networks = 10  # and in a square
    config.line_widths = ((32,), (32,) * 2, (64,) * 2, (32,) * 4, (16,) * 8, (32,) * 8)
    config.depths = (1, 2, 3, 4)  # of width 8, for regions against depth
    config.widths = (6, 8, 12, 16, 24)  # of two layers, for regions against width
    config.memorize = ConfigDict({"n": 400, "d": 20, "hidden": (1, 2, 5, 10, 20)})
    config.paths = ConfigDict(
        {"image_size": 16, "batch": 2, "samples": 32, "samples_alone": 3, "stride": 3}
    )
    if form == "full":
        config.networks = 100
        config.plane_networks = 50
        config.paths = ConfigDict(
            {
                "image_size": 32,
                "batch": 4,
                "samples": 128,
                "samples_alone": 16,
                "stride": 1,
            }
        )
    elif form == "small":
        config.networks = config.plane_networks = 3
        config.line_widths, config.depths, config.widths = (
            ((8,), (4, 4)),
            (1, 2),
            (6, 8),
        )
        config.memorize = ConfigDict({"n": 30, "d": 5, "hidden": (1, 2)})
        config.paths.update(
            image_size=8, batch=1, samples=2, samples_alone=2, stride=27
        )
    elif form != "quick":
        raise unknown_form(form, "expressivity", "quick, full and small")
    return config
