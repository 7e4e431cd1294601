"""The trunk: the values through which all of the signal passes.

A layer in a branch may carry little and be well: keys of attention see small
cotangents, a residual branch that starts at zero passes none. What must neither vanish
nor explode is the signal that nothing can go around. Those are the articulation points
of the program's graph: every layer of a plain network, the sums of a residual one, the
state of a recurrent one.
"""

from collections.abc import Mapping

import jax.numpy as jnp

from layerwise.tracing import Loop, TracedModel
from layerwise.tracing.graph import Graph
from layerwise.tracing.sites import NamedValue


def trunk_sites(traced: TracedModel, sites: tuple[NamedValue, ...]) -> list[int]:
    """Returns the positions in `sites` that are on the trunk, in program order.

    The input is left out, and so are embeddings: they are where the trunk begins, and
    their scale is anyone's.
    """
    values = _cut_values(traced)
    begins = ("input", "embedding")
    return [
        i for i, s in enumerate(sites) if s.value in values and s.kind not in begins
    ]


def _cut_values(part: TracedModel | Loop) -> set[int]:
    """The values that every path from the inputs to the outputs passes through.

    A value that is born at equation i and last read at equation j goes around all
    equations between them. An equation that nothing goes around is a cut, and so is
    its output if it has only one. Integers (tokens, masks) carry no moments and do not
    count.
    """
    graph = part.graph
    born, read = _lifetimes(graph, part.flow.root)
    around = [0] * (len(graph.equations) + 1)
    for value, i in born.items():
        j = read.get(value, i)
        if j > i + 1:
            around[i + 1] += 1
            around[j] -= 1
    loops = {  # the branches of a cond are not passed through by all of the signal
        loop.equation.outputs[0]: loop
        for loop in part.loops
        if loop.equation.name != "cond"
    }
    found: set[int] = set()
    open_ = 0
    for k, equation in enumerate(graph.equations):
        open_ += around[k]
        outputs = [v for v in equation.outputs if v in born and v in read]
        if open_ or not outputs:
            continue
        if equation.outputs[0] in loops:
            found |= _cut_values(loops[equation.outputs[0]])
        elif len(outputs) == 1:
            found.add(outputs[0])
    return found


def _lifetimes(
    graph: Graph, signals: Mapping[int, int]
) -> tuple[dict[int, int], dict[int, int]]:
    """Returns the equations at which floating signals are made and last read."""

    def counts(value: int) -> bool:
        return value in signals and jnp.issubdtype(
            graph.avals[value].dtype, jnp.floating
        )

    born = {v: -1 for v in graph.inputs if counts(v)}
    read: dict[int, int] = {}
    for k, equation in enumerate(graph.equations):
        read.update((v, k) for v in equation.values_in if v in born)
        born.update((v, k) for v in equation.outputs if counts(v))
    end = len(graph.equations)
    read.update((a, end) for a in graph.outputs if isinstance(a, int) and a in born)
    return born, read
