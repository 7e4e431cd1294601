r"""Embedding look-ups: rows of a fresh table, chosen by the data.

Row t of a table of independent zero-mean entries of variance v has second moment v
whatever t is; two positions hold the same row where their tokens are equal, and
independent rows elsewhere:

.. math:: K(p, p') = v P(t_p = t_{p'}),

the probability being over the examples given. Exact at any width.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from layerwise.theory import lags as lagging
from layerwise.theory.context import Node, RuleContext
from layerwise.theory.registry import NoSoundRule, rule
from layerwise.theory.state import Field, State


@rule("gather", family="lookup")
class Lookup:
    """Embedding: rows of a fresh table chosen by integer inputs; exact."""

    @staticmethod
    def forward(ctx: RuleContext, node: Node, states: Sequence[State]) -> State:
        """Second moment of the table; pairs are correlated where tokens are equal."""
        equation = node.equations[0]
        table, indices = equation.inputs[:2]
        if ctx.traced.flow.is_signal(table) or not isinstance(indices, int):
            raise NoSoundRule("a look-up in a signal")
        if indices not in ctx.data:
            raise NoSoundRule("a look-up at places that depend on the network")
        moments = ctx.weight(table)
        if moments.value is not None or moments.mean**2 > 1e-3 * moments.second:
            raise NoSoundRule("a table that is not random of zero mean")
        if moments.draws is not None:
            raise NoSoundRule("a table whose entries may depend on each other")
        tokens = _tokens(ctx, node, ctx.data[indices])
        spatial = tokens.ndim - 1
        roles = ("b",) + ("s",) * spatial + ("c",)
        channels = ctx.shape(node.output)[-1]
        return State(roles, ((channels, _field(ctx, tokens, moments.second)),))

    @staticmethod
    def backward(
        ctx: RuleContext,
        node: Node,
        states: Sequence[State],
        out: State,
        cotangent: State,
    ) -> Sequence[State | None]:
        """Integers have no cotangent."""
        return [None]


def _tokens(ctx: RuleContext, node: Node, indices: np.ndarray) -> np.ndarray:
    """Returns ``(example, *positions)``: the row that is read at each place."""
    p: Any = node.equations[0].params
    dims, shape = p["dimension_numbers"], ctx.shape(node.output)
    table = ctx.shape(node.equations[0].inputs[0])  # type: ignore[arg-type]
    rows = (
        len(table) == 2
        and dims.collapsed_slice_dims == (0,)
        and dims.start_index_map == (0,)
        and dims.offset_dims == (len(shape) - 1,)
        and tuple(p["slice_sizes"]) == (1, table[1])
    )
    if not rows:
        raise NoSoundRule("a look-up of anything but whole rows")
    if len(shape) < 2 or shape[0] != ctx.batch:
        raise NoSoundRule("a look-up without examples")
    return np.asarray(indices)[..., 0]


def _field(ctx: RuleContext, tokens: np.ndarray, second: float) -> Field:
    n, sizes = tokens.shape[0], tokens.shape[1:]
    lags = tuple(lagging.lag_values(size, ctx.level) for size in sizes)
    table = np.zeros((ctx.classes, *map(len, lags), *sizes))
    for which in np.ndindex(*map(len, lags)):
        lag = [v[i] for v, i in zip(lags, which, strict=True)]
        here, there = [slice(None)], [slice(None)]
        for d, size in zip(lag, sizes, strict=True):
            here.append(slice(max(0, -d), size - max(0, d)))
            there.append(slice(max(0, d), size + min(0, d)))
        a, b = tokens[tuple(here)], tokens[tuple(there)]
        table[(0, *which, *here[1:])] = np.mean(a == b, axis=0)
        if ctx.classes == 2 and n > 1:
            same = (a[:, None] == b[None]).sum(axis=(0, 1)) - (a == b).sum(axis=0)
            table[(1, *which, *here[1:])] = same / (n * (n - 1))
    return Field(np.zeros(sizes), table * second, lags, symmetric=True).normalized()
