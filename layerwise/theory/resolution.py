"""How many lags the tables of a model hold, and which nodes read pairs of positions."""

import math
from collections.abc import Sequence

from layerwise.moments.activations import cached_float64, two_slopes
from layerwise.theory import lags as lagging, registry
from layerwise.theory.context import Node, RuleContext


PAIRS_BACK = frozenset(
    [
        "reduce_window_sum",
        "reduce_window_max",
        "reduce_max",
        "normalization",
        "attention",
        "cumsum",
        "fixed_product",
        "broadcast_in_dim",
        "opaque",
    ]
)
_PAIRS = PAIRS_BACK | {"reduce_sum"}
DENSE_BUDGET = 1e8
"""Table entries in all, above which fewer lags are held."""
PAIRS_BACK_BUDGET = 1e7
"""The same, above which cotangents hold pairs only where a sum or a maximum reads."""


def is_curved(node: Node) -> bool:
    """Whether a node is a scalar function that is not homogeneous, as ReLU is."""
    if node.name != "pointwise":
        return False
    return two_slopes(cached_float64(node.data)[0]) is None


def is_bent(node: Node) -> bool:
    """Whether a node is a scalar function that is not linear."""
    if node.name != "pointwise":
        return False
    slopes = two_slopes(cached_float64(node.data)[0])
    return slopes is None or slopes[0] != slopes[1]


def count_classes(nodes: Sequence[Node]) -> int:
    """Returns 2 where something mixes examples, and pairs of them matter; else 1."""
    for node in nodes:
        if node.name == "normalization" and 0 in node.data.axes:
            return 2
    return 1


def held_lags(
    ctx: RuleContext, nodes: Sequence[Node], classes: int, budget: float
) -> tuple[int, float]:
    """Returns the level at which lags are held, and the table entries at it.

    Every lag where something attends to positions, if the tables fit.
    """
    needed = any(
        n.name in _PAIRS
        or registry.find(n.name) is None
        or is_curved(n)
        or _reads_few(ctx, n)
        for n in nodes
    )
    if not needed:
        return lagging.NONE, 0.0
    if any(n.name == "attention" for n in nodes):
        entries = _entries(ctx, nodes, classes, lagging.FULL)
        if entries < budget:
            return lagging.FULL, entries
    entries = _entries(ctx, nodes, classes, lagging.DENSE)
    if entries < budget:
        return lagging.DENSE, entries
    fewer = _entries(ctx, nodes, classes, lagging.SPARSE)
    return (lagging.SPARSE if fewer < 2.0 * budget else lagging.FEWEST), entries


FEW = 10
"""Channels below which all that a convolution reads may be zero, by correlations."""


def _reads_few(ctx: RuleContext, node: Node) -> bool:
    """Whether a node reads several positions of few channels, or of some channels."""
    if node.name != "conv_general_dilated" or node.inputs[0] in ctx.data:
        return False
    equation = node.equations[0]
    spec = equation.params["dimension_numbers"].rhs_spec
    kernel = ctx.shape(equation.inputs[1])  # type: ignore[arg-type]
    taps = math.prod(kernel[a] for a in spec[2:])
    grouped = equation.params["feature_group_count"] > 1
    return taps > 1 and (grouped or kernel[spec[1]] < FEW)


def _entries(
    ctx: RuleContext, nodes: Sequence[Node], classes: int, level: int
) -> float:
    """Returns the table entries of all nodes, all inner axes taken for positions.

    But for heads of an attention, the last axis but one.
    """
    total = 0.0
    attending = [n for n in nodes if n.name == "attention"]
    roots = ctx.traced.flow.root
    heads = {roots[v] for n in attending for v in (*n.inputs, n.output)}
    for node in nodes:
        sizes = ctx.shape(node.output)[1:-1]
        if len(sizes) > 1 and roots[node.output] in heads:
            sizes = sizes[:-1]
        held = [len(lagging.lag_values(n, level)) for n in sizes]
        total += float(math.prod(sizes)) * math.prod(held) * classes
    return total
