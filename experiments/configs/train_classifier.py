"""Schemes trained side by side, the paper's Table 4 in small.

    python -m experiments.train_classifier \
        --config=experiments/configs/train_classifier.py:quick

Forms (the part after the colon):

* ``quick``: F34 at width 8 on digits at 32 pixels, three schemes, one learning rate,
  one seed, three epochs. Under a minute on two CPU cores.
* ``digits``: 64 pixels, six schemes, four learning rates, ten seeds, twenty epochs: 240
  runs of about half a minute each.
* ``full``: the paper's own: Fungi10 at 224 pixels, F34 of 64 channels, five schemes,
  five learning rates, ten seeds, 300 epochs, in bfloat16. For an accelerator; the data
  has to be downloaded by hand, see `tfds_fields`.
* ``small``: a network of one hidden layer, tenths of a second an epoch, for tests.
"""

from ml_collections import ConfigDict

from experiments.configs import tfds_fields, unknown_form


def get_config(form: str = "quick") -> ConfigDict:
    """Returns the configuration of a form."""
    config = ConfigDict()
    config.data = "digits"  # "fungi10", "tfds:NAME"
    config.tfds = tfds_fields()  # of the last two
    config.model = "f34"
    config.model_args = ConfigDict({"width": 8, "image_size": 32})
    config.schemes = ("kaiming_fan_in", "asv_forward", "position_resolved_forward")
    config.learning_rates = (1e-2,)
    config.seeds = 1
    config.first_seed = 0
    config.epochs = 3
    config.batch = 64
    config.momentum = 0.9
    config.weight_decay = 1e-4
    config.compute = "float32"  # or "bfloat16"; parameters and loss are float32
    config.stacked = 1  # seeds trained side by side; gains where a device is not full
    config.layers_every = 0  # steps between measurements of the layers; 0 for none
    if form == "digits":
        config.model_args.image_size = 64
        config.schemes = (
            "glorot",
            "kaiming_fan_in",
            "asv_forward",
            "asv_backward",
            "position_resolved_forward",
            "kernel_forward",
        )
        config.learning_rates = (1e-1, 1e-2, 1e-3, 1e-4)
        config.seeds = 10
        config.epochs = 20
    elif form == "full":
        config.data = "fungi10"
        config.model_args = ConfigDict({"width": 64, "image_size": 224})
        config.schemes = (
            "glorot",
            "kaiming_fan_in",
            "kaiming_fan_out",
            "asv_forward:3",
            "asv_backward:3",
        )
        config.learning_rates = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
        config.seeds = 10
        config.epochs = 300
        config.compute = "bfloat16"
    elif form == "small":
        config.model = "mlp"
        config.model_args = ConfigDict({"input_shape": (8, 8, 3), "widths": (16,)})
        config.schemes = ("kaiming_fan_in", "glorot")
        config.epochs = 4
    elif form != "quick":
        raise unknown_form(form, "train_classifier", "quick, digits, full and small")
    return config
