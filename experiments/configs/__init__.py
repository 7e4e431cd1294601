"""One file per experiment; ``--config=experiments/configs/NAME.py:FORM``."""


def unknown_form(form: str, name: str, forms: str) -> ValueError:
    """Returns the error for a form that the configuration `name` does not have."""
    return ValueError(
        f"Unknown form {form!r} of this configuration.\n"
        f"Its forms are {forms}.\n"
        f"Pass --config=experiments/configs/{name}.py:quick."
    )
