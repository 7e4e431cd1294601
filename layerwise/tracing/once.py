"""The one trace of a model that makes its own parameters.

Flax runs a module to make its parameters and runs it again to use them: a deep model
is traced twice, which is most of what it costs to read. Here it is traced once. Each
parameter is a cut through that program: before it is how the parameter is drawn, behind
it is what the model does on parameters that are given.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from layerwise import _jax
from layerwise.tracing.model import ModelFunction, without_place
from layerwise.tracing.uncollected import uncollected
from layerwise.types import PyTree


@dataclasses.dataclass(frozen=True, eq=False)
class Once:
    """A model's trace, cut at its parameters.

    Attributes:
        making: ``(key, *inputs) -> parameter leaves``: what draws each. Not the draws
            of the model's own init, which splits its key otherwise.
        program: ``(*parameter leaves, *inputs) -> output leaves``.
        params: Shapes and dtypes of the parameters.
        output: Those of the output.
    """

    making: _jax.ClosedJaxpr
    program: _jax.ClosedJaxpr
    params: PyTree
    output: PyTree


@uncollected()
def trace_once(model: ModelFunction, inputs: Sequence[Any]) -> Once | None:
    """Returns the one trace of a model on inputs; None where there has to be another.

    That is where the model makes none of its parameters, keeps state beside them, or
    makes them in a loop or another transformation; and where it cannot be called, the
    reason for which is found by calling it.
    """
    if model.both is None:
        return None
    args = jax.random.key(0), *map(without_place, inputs)
    try:
        jaxpr, shapes = jax.make_jaxpr(model.both, return_shape=True)(*args)
    except Exception:
        return None
    params, _, output = shapes
    leaves = len(jax.tree.leaves(params))
    if not leaves or any(_jax.is_tracer(x) for x in jaxpr.consts):
        return None
    made, rest = jaxpr.jaxpr.outvars[:leaves], jaxpr.jaxpr.outvars[leaves:]
    read, out = rest[:leaves], rest[leaves:]
    given = jaxpr.jaxpr.invars
    making = _part(jaxpr, given, made)
    program = _part(jaxpr, [*read, *given[1:]], out)
    if making is None or program is None:
        return None
    return Once(making, program, params, output)


def _part(
    jaxpr: _jax.ClosedJaxpr,
    inputs: Sequence[Any],
    outputs: Sequence[_jax.Var | _jax.Literal],
) -> _jax.ClosedJaxpr | None:
    """Returns the program of `outputs` from `inputs`; None if it reads others too."""
    needed = {a for a in outputs if isinstance(a, _jax.Var)}
    own = set(inputs)
    eqns = []
    for eqn in reversed(jaxpr.eqns):
        if any(v in needed and v not in own for v in eqn.outvars):
            eqns.append(eqn)
            needed.update(a for a in eqn.invars if isinstance(a, _jax.Var))
    if any(v in needed and v not in own for v in jaxpr.jaxpr.invars):
        return None
    return _jax.part(jaxpr, eqns[::-1], inputs, outputs)
