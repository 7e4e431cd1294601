"""Second moments by layer, measured over random networks and predicted beside.

    python -m experiments.variance_curves \
        --config=experiments/configs/variance_curves.py:quick

Forms (the part after the colon):

* ``quick``: F34 at full size (224x224, 21,108,362 parameters), two photos, 16 networks
  under each of four schemes. About a minute and a half on two CPU cores.
* ``full``: the same with 64 networks, for standard errors half as large.
* ``blocks``: residual blocks of dense layers on digits, predicted by the engine.
* ``small``: F34 at width 8 and 64 pixels, 4 networks; a few seconds, for tests.
"""

from ml_collections import ConfigDict

from experiments.configs import tfds_fields, unknown_form


def get_config(form: str = "quick") -> ConfigDict:
    """Returns the configuration of a form."""
    config = ConfigDict()
    config.model = "f34"  # of the zoo, or "package.module:Class"
    config.model_args = ConfigDict({"image_size": 224})
    config.inputs = "photos"  # or "gaussian", "digits", "fungi10", "tfds:NAME"
    config.subset = "train"  # of the last three, or "test"
    config.tfds = tfds_fields()
    config.batch = 2
    config.method = "recursion"  # predicted beside; or "sitewise", "kernel", "none"
    config.directions = ("forward", "backward")
    # scheme, or scheme:cap
    config.schemes = ("glorot", "kaiming_fan_in", "asv_forward", "asv_backward:3")
    config.draws = 16
    config.seed = 0
    if form == "full":
        config.draws = 64
    elif form == "blocks":
        config.model = "taki_mlp"
        args = {"input_shape": (8, 8, 3), "width": 64, "depth": 30}
        config.model_args = ConfigDict(args)
        config.inputs, config.batch = "digits", 8
        config.schemes, config.method = ("kaiming_fan_in", "taki"), "kernel"
    elif form == "small":
        config.model_args = ConfigDict({"image_size": 64, "width": 8})
        config.draws = 4
    elif form != "quick":
        raise unknown_form(form, "variance_curves", "quick, full, blocks and small")
    return config
