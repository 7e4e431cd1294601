"""Errors that say what was found, where, why it matters, and what to type.

Every error raised on purpose derives from `LayerwiseError` and from the builtin that a
caller would expect (`ValueError`, `NotImplementedError`), so both ``except`` clauses
work. A message has three parts, each on its own line::

    <what was found, with values, and where>.
    <why that stops the computation>.
    <what to type instead>
"""


class LayerwiseError(Exception):
    """Base class of every error that layerwise raises on purpose."""


class InvalidArgumentError(LayerwiseError, ValueError):
    """An argument that no model could make valid (draws < 1, an unknown scheme)."""


class InputError(LayerwiseError, ValueError):
    """Inputs that the model cannot take, or on which its moments mean nothing."""


class ParametersError(LayerwiseError, ValueError):
    """Parameters that do not belong to the model, or that hold NaN or infinity."""


class UnsupportedModelError(LayerwiseError, NotImplementedError):
    """A model outside of what the requested method is valid for."""


class OutOfMemoryError(LayerwiseError, MemoryError):
    """What was asked for at once does not fit on the device."""


class UnhealthyError(LayerwiseError, AssertionError):
    """A network that is not healthy, where it was asserted to be."""


def message(found: str, why: str, fix: str) -> str:
    """Joins the three parts of an error message, one per line."""
    return f"{found}\n{why}\n{fix}"


def did_you_mean(name: str, known: list[str]) -> str:
    """Returns ``" Did you mean 'x'?"`` for the closest known name, or nothing."""
    close = closest(name, known)
    return f" Did you mean {close!r}?" if close else ""


def closest(name: str, known: list[str]) -> str:
    """Returns the known name that is most like a name, "" where none is."""
    import difflib

    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=0.5)), "")
