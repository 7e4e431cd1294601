"""Architectures, one family per file, each verified by its parameter count.

Every file of this package is imported here (not the folder `nnx`, which would import
the other half of Flax), and every constructor that one of them
registers is an attribute of the package: ``zoo.f34(width=16)`` is
``zoo.create("f34", width=16)``. A new architecture is therefore one new file (or one
more constructor in a file), and nothing else.

All models are Flax Linen modules in NHWC layout with `input_shape` (one example, no
batch axis), `num_classes`, `kernel_init`, `dtype`, and the widths of their family.
"""

import importlib
import pkgutil
from typing import Any

from layerwise.zoo.registry import Entry, create, entry, names, register


__all__ = ["Entry", "create", "entry", "names", "register"]

for _module in pkgutil.iter_modules(__path__):
    if _module.ispkg:
        continue
    importlib.import_module(f"{__name__}.{_module.name}")


def __getattr__(name: str) -> Any:
    """Returns the constructor registered under `name`."""
    if name in names():
        return entry(name).constructor
    raise AttributeError(
        f"module {__name__!r} has no attribute {name!r}. "
        "List the architectures with layerwise.zoo.names()."
    )


def __dir__() -> list[str]:
    return [*__all__, *names()]
