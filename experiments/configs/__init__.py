"""One file per experiment; ``--config=experiments/configs/NAME.py:FORM``."""

from ml_collections import ConfigDict


def tfds_fields() -> ConfigDict:
    """Returns where data sets lie, and how their images are taken.

    What the paper leaves open on Fungi10 is here: which categories are the first
    (``order``, "number" or "name"), how images are split ("random", "stratified"), and
    how photos become squares (``fit``, "squash" or "crop").
    """
    fields = {"data_dir": "runs/tfds", "manual_dir": "runs/manual"}
    fields |= {"order": "number", "split": "random", "fit": "squash"}
    return ConfigDict({**fields, "corrupt": "fatal"})


def unknown_form(form: str, name: str, forms: str) -> ValueError:
    """Returns the error for a form that the configuration `name` does not have."""
    return ValueError(
        f"Unknown form {form!r} of this configuration.\n"
        f"Its forms are {forms}.\n"
        f"Pass --config=experiments/configs/{name}.py:quick."
    )
