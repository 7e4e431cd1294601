"""The list of architectures: who is in it, and how to build one cheaply.

A family file registers its constructors where it defines them, in one line::

    @register(small={"width": 4, "image_size": 32})
    def f34(**kwargs) -> F34:
        return F34(**kwargs)

and every test that runs over `names()` picks the architecture up.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import flax.linen as nn

from layerwise.errors import InvalidArgumentError, did_you_mean, message


_Constructor = TypeVar("_Constructor", bound=Callable[..., nn.Module])


@dataclasses.dataclass(frozen=True)
class Entry:
    """One architecture of the zoo.

    Attributes:
        name: What `create` takes; also the constructor's name in `layerwise.zoo`.
        constructor: Returns the Flax module; every argument has a default.
        small: Arguments of `constructor` that keep the architecture's structure at a
            size that a test can run in about a second: narrow, few blocks, small
            images. A model built with them has 10 classes or fewer.
        family: The file of `layerwise.zoo` that defines it.
    """

    name: str
    constructor: Callable[..., nn.Module]
    small: Mapping[str, Any]
    family: str

    @property
    def summary(self) -> str:
        """The first line of the constructor's docstring."""
        return (inspect.getdoc(self.constructor) or "").partition("\n")[0]

    def build(self) -> nn.Module:
        """Returns the architecture at its published size."""
        return self.constructor()

    def build_small(self, **overrides: Any) -> nn.Module:
        """Returns the architecture at a size for tests."""
        return self.constructor(**{**self.small, **overrides})


_ENTRIES: dict[str, Entry] = {}


def register(*, small: Mapping[str, Any]) -> Callable[[_Constructor], _Constructor]:
    """Adds the decorated constructor to the zoo, under its own name.

    Args:
        small: See `Entry`.

    Returns:
        A decorator that gives the constructor back unchanged.

    Raises:
        InvalidArgumentError: The name is taken. Two constructors of one name would
            leave it to the order of imports which of them a user gets.
    """

    def add(constructor: _Constructor) -> _Constructor:
        name = constructor.__name__
        family = constructor.__module__.rpartition(".")[2]
        if name in _ENTRIES and _ENTRIES[name].family != family:
            raise InvalidArgumentError(
                message(
                    f"The zoo has an architecture named {name!r} already, in "
                    f"zoo/{_ENTRIES[name].family}.py; zoo/{family}.py registers "
                    "another one.",
                    "A name must tell which architecture it builds.",
                    "Rename one of the two constructors.",
                )
            )
        _ENTRIES[name] = Entry(name, constructor, MappingProxyType(dict(small)), family)
        return constructor

    return add


def defaults(kwargs: Mapping[str, Any], /, **published: Any) -> dict[str, Any]:
    """Returns a constructor's published arguments, with the caller's in their place."""
    return published | dict(kwargs)


def names() -> list[str]:
    """Returns the names of all architectures, sorted."""
    return sorted(_ENTRIES)


def entry(name: str) -> Entry:
    """Returns what the zoo knows about one architecture.

    Args:
        name: One of `names()`.

    Raises:
        InvalidArgumentError: There is no architecture of that name.
    """
    if name not in _ENTRIES:
        raise InvalidArgumentError(
            message(
                f"No architecture {name!r} in the zoo.{did_you_mean(name, names())}",
                f"There are {len(_ENTRIES)}, and none has this name.",
                "List them with layerwise.zoo.names().",
            )
        )
    return _ENTRIES[name]


def create(name: str, **kwargs: Any) -> nn.Module:
    """Builds an architecture by name.

    Args:
        name: One of `names()`.
        **kwargs: Arguments of the constructor `layerwise.zoo.<name>`.

    Returns:
        The Flax module. It has `input_shape`, the shape of one example.

    Raises:
        InvalidArgumentError: There is no architecture of that name.

    Example:
        >>> from layerwise import zoo
        >>> zoo.create("f34", width=16).input_shape
        (224, 224, 3)
    """
    return entry(name).constructor(**kwargs)
