"""JAX's own initializers, traced once for all parameters that they draw alike.

The layers of a deep network draw their weights by a few functions of a few shapes, each
of which is a dozen equations. Calling one jitted function for them is one.
"""

from collections.abc import Callable, Hashable
from typing import Any

import jax


# Those with options are functions made by the module that the public one imports.
_THEIR_MODULES = {
    jax.nn.initializers.zeros.__module__,
    jax.nn.initializers.normal().__module__,
}


class Initializers:
    """Calls initializers, those of JAX's own as jitted functions that are kept.

    They are told apart by what they were made from, since a model may make one anew for
    every layer. Others are called as they are: they need not do the same every time.
    """

    def __init__(self) -> None:
        self._kept: dict[Hashable, Callable[[jax.Array], Any]] = {}

    def call(self, init: Callable[..., Any], key: jax.Array, *args: Any) -> Any:
        """Returns ``init(key, *args)``."""
        made_from = _made_from(init)
        if made_from is None:
            return init(key, *args)
        alike = (*made_from, *map(_with_type, args))
        try:
            kept = self._kept.get(alike)
        except TypeError:  # not hashable
            return init(key, *args)
        if kept is None:
            kept = self._kept[alike] = jax.jit(lambda key: init(key, *args))
        return kept(key)


def _made_from(init: Callable[..., Any]) -> tuple[Any, ...] | None:
    """Returns what an initializer of JAX's own does the same with as another one."""
    code = getattr(init, "__code__", None)
    if code is None or init.__module__ not in _THEIR_MODULES:
        return None
    cells = (c.cell_contents for c in init.__closure__ or ())
    options = (*cells, *(init.__defaults__ or ()))
    return code, *map(_with_type, options)


def _with_type(x: Any) -> tuple[type, Any]:
    return type(x), x  # 1 equals 1.0
