"""Leaves as functions of random bits, computed where the bits are equally spaced.

A normal, truncated normal or uniform leaf is an elementwise function of its bits, so
that its law is an integral over one variable. Most leaves of a network differ in a last
factor only; what they have in common is computed once.
"""

from collections.abc import Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from layerwise import _jax
from layerwise.tracing import primitives
from layerwise.tracing.graph import Atom, Equation, Graph


_POINTS = 2**16
_computed: dict[Hashable, jax.Array] = {}
"""What was computed before, by what it is; the latest last."""


def grid_values(
    graph: Graph, atom: int, equations: Sequence[Equation]
) -> np.ndarray | None:
    """Returns the values of a leaf on equally spaced bits.

    Args:
        graph: The program that draws it.
        atom: The leaf.
        equations: Those that make it, back to its one ``random_bits``.

    Returns:
        ``(point,)``, or None if it is no elementwise function of them.
    """
    bits = f"bits, floats {jnp.result_type(float)}"
    known: dict[int, Hashable] = {}

    def name(atom: Atom) -> Hashable:
        if not isinstance(atom, int):
            return repr(atom.val)
        if atom in graph.constants:
            return entries(graph.constants[atom])
        return known.get(atom, bits)

    for e in equations:
        named = hash((e.name, _what(e), *map(name, e.inputs)))
        known.update(dict.fromkeys(e.outputs, named))
    made = {known[e.outputs[0]]: e for e in equations}
    missing = {k: e for k, e in made.items() if k not in _computed}
    before = {k: _computed.pop(k) for k in made if k in _computed}

    def compute(before: dict[Hashable, jax.Array]) -> dict[Hashable, jax.Array]:
        found = dict(before)

        def value(atom: Atom) -> Any:
            if not isinstance(atom, int):
                return atom.val
            # What nothing here has made is a constant, or the key that bits come from.
            return found.get(known.get(atom), graph.constants.get(atom))

        for k, e in missing.items():
            found[k] = _on_grid(e, [value(a) for a in e.inputs])
        return {k: found[k] for k in missing}

    try:
        run = jax.jit(compute) if len(missing) > _FEW else compute
        found = before | run(before)
    except _NotElementwise:
        return None
    finally:
        _computed.update(before)
    values = np.asarray(found[known[atom]], np.float64)
    _computed.update(found)
    while len(_computed) > _HELD:
        del _computed[next(iter(_computed))]
    return values if values.size == _POINTS else None


_HELD = 128
_FEW = 4
"""Equations that are compiled one by one: most likely they were before."""
_SAME_LAW = primitives.LAYOUT - {"convert_element_type"} | {"slice", "split"}
_ALLOWED = (
    primitives.ELEMENTWISE
    | primitives.WRAPPERS
    | {"bitcast_convert_type", "convert_element_type"}
)


class _NotElementwise(Exception):
    """An equation does not make each entry of its result of one entry of the bits."""


def entries(value: Any) -> Hashable:
    """Returns what tells an array from others: a key from random.key too."""
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    array = np.asarray(value)
    return array.dtype.str, array.shape, array.tobytes()


def _what(equation: Equation) -> str:
    if equation.name in _SAME_LAW:
        return ""
    if equation.name == "random_bits":
        return str(equation.params["bit_width"])
    bodies = _jax.sub_jaxprs(equation.eqn)
    return str(bodies[0]) if bodies else str(equation.params)


def _grid(width: int) -> jax.Array:
    """Returns equally spaced bits; of up to 16 each as often as others.

    Raises:
        _NotElementwise: If they are more than 32.
    """
    if width > 32:
        raise _NotElementwise
    points = np.arange(_POINTS, dtype=np.uint64)
    grid = (points * 2 + 1) * 2 ** (width - 1) // _POINTS
    return jnp.asarray(grid.astype(f"uint{width}"))


def _on_grid(equation: Equation, operands: list[Any]) -> jax.Array:
    """Applies one equation to arrays over the grid.

    Entries of a leaf are independent and alike, so that a rearrangement or a part of
    them has the law of the whole.

    Raises:
        _NotElementwise: If it is something else.
    """
    if equation.name == "random_bits":
        return _grid(equation.params["bit_width"])
    arrays = [jnp.asarray(x) for x in operands]
    if any(x.size not in (1, _POINTS) for x in arrays):
        raise _NotElementwise
    if equation.name in _SAME_LAW:
        return arrays[0]
    if equation.name not in _ALLOWED:
        raise _NotElementwise
    shape = (_POINTS,) if any(x.size == _POINTS for x in arrays) else ()
    arrays = [
        jnp.broadcast_to(jnp.reshape(x, (-1,) if x.size > 1 else ()), shape)
        for x in arrays
    ]
    return _jax.bind(equation.eqn, arrays)[0]
