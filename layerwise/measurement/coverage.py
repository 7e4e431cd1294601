"""What of a model is measured, what cannot be, and what a user wants left out."""

import fnmatch
from collections.abc import Callable, Iterator, Sequence

import jax.numpy as jnp

from layerwise import _jax
from layerwise.errors import InvalidArgumentError, did_you_mean, message
from layerwise.tracing import Loop, TracedModel, primitives
from layerwise.tracing.graph import Equation
from layerwise.tracing.sites import NamedValue


Select = str | Sequence[str] | Callable[[str], bool]
"""Globs of layer paths, or a predicate on them."""

# Equations that may hold a parameter without being a layer: what they do with it shows
# in the values that are tapped after them.
_TRANSPARENT = (
    primitives.ELEMENTWISE
    | primitives.LAYOUT
    | primitives.WEIGHT_OPERATIONS
    | primitives.LOOKUPS
    | frozenset(["concatenate", "dynamic_update_slice", "pad"])
)


def selected(sites: tuple[NamedValue, ...], select: Select) -> tuple[NamedValue, ...]:
    """Returns the sites whose path is selected.

    The input stays, and so does the last layer: curves begin and end there.

    Args:
        sites: All of them.
        select: A glob such as ``"block_1/*"``, several, or a predicate.

    Raises:
        InvalidArgumentError: If no path is selected.
    """
    if callable(select):
        keep = select
    else:
        globs = (select,) if isinstance(select, str) else tuple(select)
        keep = lambda path: any(fnmatch.fnmatchcase(path, g) for g in globs)
    paths = tuple(dict.fromkeys(s.path for s in sites if s.kind != "input"))
    chosen = {p for p in paths if keep(p)}
    if not chosen:
        hint = did_you_mean(select, list(paths)) if isinstance(select, str) else ""
        raise InvalidArgumentError(
            message(
                f"select={select!r} matches none of {len(paths)} paths.{hint}",
                "There would be nothing to measure.",
                f"Paths are {', '.join(paths[:8])}{', ...' if paths[8:] else ''}; "
                "globs match all of a path: '*/Dense_0'.",
            )
        )
    last = max(s.layer for s in sites)
    ends = [s for s in sites if s.layer == last and s.kind in ("u", "v", "z")]
    return tuple(s for s in sites if s.path in chosen or s.kind == "input" or s in ends)


def untapped(traced: TracedModel) -> tuple[str, ...]:
    """Says what holds parameters and was not looked into, and what goes one way only.

    An equation that reads parameters and signal is a layer, an embedding, a loop that
    was entered, one whose effect the taps after it see; or it is named here.
    """
    found: list[str] = []

    def look(part: TracedModel | Loop) -> None:
        entered = {id(loop.equation) for loop in part.loops}
        for equation in part.graph.equations:
            if not any(map(part.flow.is_signal, equation.inputs)):
                continue
            leaves = frozenset().union(*map(part.flow.leaves_of, equation.inputs))
            line = f" at {equation.source}" if equation.source else ""
            place = equation.name + line
            if equation.name == "while":
                found.append(f"{place}: no cotangent goes back through it")
            if leaves and id(equation) not in entered and _is_opaque(equation):
                found.append(place)
        for loop in part.loops:
            look(loop)

    look(traced)
    return tuple(dict.fromkeys(found))


def _is_opaque(equation: Equation) -> bool:
    """Returns whether an equation that reads parameters could hide a layer."""
    if _jax.sub_jaxprs(equation.eqn):
        return not primitives.WEIGHT_OPERATIONS.isdisjoint(_names(equation))
    return equation.name not in _TRANSPARENT


def _names(equation: Equation) -> Iterator[str]:
    """Yields the primitives in the bodies of an equation, however deep."""
    waiting = list(_jax.sub_jaxprs(equation.eqn))
    while waiting:
        for eqn in waiting.pop().jaxpr.eqns:
            yield _jax.primitive_name(eqn)
            waiting += _jax.sub_jaxprs(eqn)


def blind_values(traced: TracedModel) -> frozenset[int]:
    """Returns the values whose cotangent cannot be had.

    JAX has no reverse derivative of a while: of what flows into one, and of what is
    within it, nothing is known backward. The body of a loop or branch around it counts
    as a whole.
    """
    found: set[int] = set()

    def look(part: TracedModel | Loop) -> None:
        needed: set[int] = set()
        for equation in reversed(part.graph.equations):
            stops = [e for e in _with_bodies(equation) if e.name == "while"]
            floats = any(
                part.flow.is_signal(v)
                and jnp.issubdtype(part.graph.avals[v].dtype, jnp.floating)
                for v in equation.values_in
            )
            if (stops and floats) or not needed.isdisjoint(equation.outputs):
                needed.update(equation.values_in)
            for loop in part.loops:
                if loop.equation is equation and stops:
                    found.update(v for g in loop.graphs() for v in g.avals)
        found.update(needed)
        for loop in part.loops:
            look(loop)

    look(traced)
    return frozenset(found)


def _with_bodies(equation: Equation) -> Iterator[Equation]:
    yield equation
    for body in equation.bodies:
        yield from body.all_equations()
