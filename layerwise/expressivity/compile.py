r"""Compiles joins, pools and piecewise-linear activations into concat + affine + ReLU.

Each rule is a lemma or theorem of [Nagase2019], with its misprints corrected:

* max: :math:`\max(x, y) = \sigma(x - y) + y` (printed ``ReLU(x - y, 0) + y``), in a
  tournament of :math:`\lceil \log_2 T \rceil` layers and :math:`T - 1` ReLUs for a
  window of T (Theorem 1);
* sum, difference (printed as division) and mean: affine maps of the concatenation;
* product :math:`\exp(\log x + \log y)`: for positive values only; for every sign
  :math:`xy = ((x + y)^2 - (x - y)^2) / 4` (Theorem 2);
* an affine map of an affine map is one affine map (Theorem 3, Proposition 1).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import scipy.sparse

from layerwise.errors import InvalidArgumentError, message
from layerwise.expressivity import linear_maps
from layerwise.expressivity.graph import (
    EXP,
    LOG,
    RELU,
    SQUARE,
    Affine,
    Input,
    Join,
    MaxPool,
    Net,
    Node,
    Pointwise,
    affine,
    affine_of,
    concat,
    pointwise,
    relu,
)


Carry = Literal["skip", "nonnegative", "relu"]
"""How a tournament keeps the running maximum y of ``max(x, y) = relu(x - y) + y``."""

Product = Literal["log", "squares"]
"""Which identity a product join compiles to."""


def compile_net(
    net: Net, *, carry: Carry = "skip", product: Product = "log", fuse: bool = True
) -> Net:
    """Returns the same function with affine maps, concatenations and activations only.

    Exact: the result equals the network in real arithmetic, and to rounding in float64.

    Args:
        net: Any network of the graph algebra.
        carry: "skip" concatenates the running maximum past each ReLU (T - 1 ReLUs per
            window); "nonnegative" sends it through the ReLU, which is right where the
            pooled values are at least zero (after a ReLU); "relu" needs neither, at
            two ReLUs more per pair: y = relu(y) - relu(-y).
        product: "log" is for positive values, and says so on others; "squares" for all.
        fuse: Whether affine maps with one reader are multiplied into it.

    Returns:
        The compiled network, of the same input and output shapes.
    """
    source = Input(net.input.shape)
    done: dict[Node, Node] = {net.input: source}
    for node in net.nodes():
        if node not in done:
            parents = tuple(done[p] for p in node.parents)
            done[node] = _rewrite(node, parents, carry, product)
    out = Net(source, done[net.output])
    return fuse_affine(out) if fuse else out


def _rewrite(
    node: Node, parents: tuple[Node, ...], carry: Carry, product: Product
) -> Node:
    match node:
        case Join():
            return _rewrite_join(node.kind, parents, carry, product)
        case MaxPool():
            return max_tournament(parents[0], node.windows, node.shape, carry=carry)
        case Pointwise() if (
            node.activation.pieces is not None and node.activation is not RELU
        ):
            return _rewrite_pieces(node, parents[0])
    return dataclasses.replace(node, parents=parents)


def _rewrite_join(
    kind: str, parents: tuple[Node, ...], carry: Carry, product: Product
) -> Node:
    """[Nagase2019] Theorem 2."""
    if kind in ("add", "mean", "subtract"):
        factors = [1.0] * len(parents)
        if kind == "mean":
            factors = [1.0 / len(parents)] * len(parents)
        elif kind == "subtract":  # the print says division
            factors = [1.0, -1.0]
        return weighted_sum(parents, factors)
    if kind == "max":
        stacked = _stack_flat(parents)
        size, shape = parents[0].size, parents[0].shape
        starts = np.arange(len(parents)) * size
        return max_tournament(
            stacked, [starts + i for i in range(size)], shape, carry=carry
        )
    if kind == "quotient":
        x, y = (pointwise(p, LOG) for p in parents)
        return pointwise(weighted_sum((x, y), [1.0, -1.0]), EXP)
    if product == "log":
        logs = tuple(pointwise(p, LOG) for p in parents)
        return pointwise(weighted_sum(logs, [1.0] * len(logs)), EXP)
    first, *rest = parents
    for other in rest:
        plus = pointwise(weighted_sum((first, other), [1.0, 1.0]), SQUARE)
        minus = pointwise(weighted_sum((first, other), [1.0, -1.0]), SQUARE)
        first = weighted_sum((plus, minus), [0.25, -0.25])
    return first


def _rewrite_pieces(node: Pointwise, x: Node) -> Node:
    """f(x) = c_0 + s_0 x + sum_j (s_j - s_{j-1}) relu(x - t_j), with a skip for s_0."""
    table = node.activation.pieces
    assert table is not None
    unit = linear_maps.identity(x.shape)
    parents, maps = [x], [linear_maps.ScaleMap(x.shape, x.shape, table.slopes[0])]
    for t, before, after in zip(table.breaks, table.slopes, table.slopes[1:]):
        shift = np.full(x.size, -t) if t else None
        hinge = relu(Affine((x,), x.shape, (unit,), shift))
        parents.append(hinge)
        maps.append(linear_maps.ScaleMap(x.shape, x.shape, after - before))
    bias = np.full(x.size, table.intercepts[0]) if table.intercepts[0] else None
    kept = [i for i, m in enumerate(maps) if m.factor != 0.0] or [0]
    return Affine(
        tuple(parents[i] for i in kept), x.shape, tuple(maps[i] for i in kept), bias
    )


def weighted_sum(parents: Sequence[Node], factors: Sequence[float]) -> Affine:
    """Returns ``sum_i factors[i] * parents[i]`` as one affine map."""
    shape = parents[0].shape
    maps = tuple(linear_maps.ScaleMap(shape, shape, float(f)) for f in factors)
    return Affine(tuple(parents), shape, maps, None)


def _stack_flat(parents: Sequence[Node]) -> Node:
    flat = [reshaped(p, (p.size,)) for p in parents]
    return concat(*flat)


def reshaped(node: Node, shape: tuple[int, ...]) -> Node:
    """Returns the node's entries in another shape."""
    if node.shape == shape:
        return node
    linear = linear_maps.ScaleMap(node.shape, shape, 1.0)
    return Affine((node,), shape, (linear,), None)


# Tournaments --------------------------------------------------------------------------


def max_tournament(
    x: Node,
    windows: Sequence[np.ndarray],
    shape: tuple[int, ...] | None = None,
    *,
    carry: Carry = "skip",
) -> Node:
    """Returns the maximum over each window, by pairs. [Nagase2019] Theorem 1.

    Args:
        x: The value that is pooled; windows index its entries, flattened.
        windows: Flat indices, one array per output; lengths may differ (borders).
        shape: Shape of the result; one axis if None.
        carry: As in `compile_net`.

    Returns:
        A node with ceil(log2 max T) activations above `x` and, by "skip",
        sum(T - 1) ReLUs.

    Raises:
        InvalidArgumentError: If there is no window or one is empty.
    """
    rounds = [[int(i) for i in w] for w in windows]
    if not rounds or not all(rounds):
        raise InvalidArgumentError(
            message(
                f"{len(rounds)} windows, of which {sum(not w for w in rounds)} empty.",
                "The maximum over nothing is minus infinity, which no ReLU gives.",
                "Use a padding smaller than the window.",
            )
        )
    value = reshaped(x, (x.size,))
    while any(len(w) > 1 for w in rounds):
        value, rounds = _round(value, rounds, carry)
    pick = _selection([[(w[0], 1.0)] for w in rounds], value.size)
    out = affine_of([value], [pick], None)
    return out if shape is None else reshaped(out, shape)


def _round(
    value: Node, rounds: list[list[int]], carry: Carry
) -> tuple[Node, list[list[int]]]:
    """One round: pairs to their maxima, an odd one waits. Returns value and windows.

    The rows of `hidden` are differences x - y (and what carries y, without skips); the
    rows of `readout` are the survivors, from the ReLUs and, with skips, from `value`.
    """
    hidden: list[list[tuple[int, float]]] = []
    readout: list[list[tuple[int, float]]] = []  # (row of hidden, or ~entry of value)
    after: list[list[int]] = []
    kept: dict[int, list[tuple[int, float]]] = {}

    def carried(entry: int) -> list[tuple[int, float]]:
        if carry == "skip":
            return [(~entry, 1.0)]
        if entry not in kept:
            kept[entry] = [(len(hidden), 1.0)]
            hidden.append([(entry, 1.0)])
            if carry == "relu":  # y = relu(y) - relu(-y)
                kept[entry].append((len(hidden), -1.0))
                hidden.append([(entry, -1.0)])
        return kept[entry]

    for window in rounds:
        start = len(readout)
        for x, y in zip(window[::2], window[1::2]):
            hidden.append([(x, 1.0), (y, -1.0)])
            readout.append([(len(hidden) - 1, 1.0)])
            readout[-1].extend(carried(y))  # max(x, y) = relu(x - y) + y
        if len(window) % 2:
            readout.append(carried(window[-1]))
        after.append(list(range(start, len(readout))))
    active = relu(affine_of([value], [_selection(hidden, value.size)], None))
    from_relu = [[(i, f) for i, f in row if i >= 0] for row in readout]
    weights = [_selection(from_relu, active.size)]
    if carry != "skip":
        return affine_of([active], weights, None), after
    past = [[(~i, f) for i, f in row if i < 0] for row in readout]
    weights.append(_selection(past, value.size))
    return affine_of([active, value], weights, None), after


def _selection(
    rows: Sequence[Sequence[tuple[int, float]]], columns: int
) -> scipy.sparse.csr_array:
    triples = [(r, c, f) for r, row in enumerate(rows) for c, f in row]
    r, c, f = zip(*triples) if triples else ((), (), ())
    shape = (len(rows), columns)
    coo = scipy.sparse.coo_array((np.asarray(f, np.float64), (r, c)), shape)
    return scipy.sparse.csr_array(coo)


# Fusion -------------------------------------------------------------------------------


def fuse_affine(net: Net) -> Net:
    """Multiplies out every affine map that only one other affine map reads.

    ``W (f; g)`` with affine f and g is one affine map of what f and g read
    ([Nagase2019] Theorem 3). A map with several readers stays, so that nothing is
    computed twice.
    """
    readers: dict[Node, int] = {}
    for node in net.nodes():
        for parent in node.parents:
            readers[parent] = readers.get(parent, 0) + 1
    done: dict[Node, Node] = {}
    for node in net.nodes():
        parents = tuple(done[p] for p in node.parents)
        if isinstance(node, Affine):
            alone = [readers[p] == 1 for p in node.parents]
            done[node] = _absorb(node, parents, alone)
        elif isinstance(node, Input):
            done[node] = node
        else:
            done[node] = dataclasses.replace(node, parents=parents)
    assert isinstance(done[net.input], Input)
    return Net(net.input, done[net.output])


def _absorb(node: Affine, parents: tuple[Node, ...], alone: list[bool]) -> Affine:
    """Replaces the affine parents that nobody else reads by what they read."""
    terms: dict[Node, linear_maps.LinearMap] = {}
    extra: list[tuple[Node, linear_maps.LinearMap]] = []
    bias: Any = 0.0 if node.bias is None else node.bias

    def add(parent: Node, linear: linear_maps.LinearMap) -> None:
        merged = _sum_of(terms[parent], linear) if parent in terms else linear
        if merged is None:
            extra.append((parent, linear))
        else:
            terms[parent] = merged

    for parent, linear, free in zip(parents, node.maps, alone, strict=True):
        if free and isinstance(parent, Affine):
            for grand, inner in zip(parent.parents, parent.maps, strict=True):
                add(grand, linear_maps.compose(linear, inner))
            if parent.bias is not None:
                bias = bias + _at_bias(linear, parent)
        else:
            add(parent, linear)
    pairs = [*terms.items(), *extra]
    flat = None if np.isscalar(bias) and bias == 0.0 else np.asarray(bias)
    return Affine(
        tuple(p for p, _ in pairs), node.shape, tuple(m for _, m in pairs), flat
    )


def _sum_of(
    a: linear_maps.LinearMap, b: linear_maps.LinearMap
) -> linear_maps.LinearMap | None:
    """The sum of two maps of one value, where both are written out."""
    explicit = (linear_maps.MatrixMap, linear_maps.ScaleMap)
    if isinstance(a, explicit) and isinstance(b, explicit):
        total: Any = a.matrix() + b.matrix()
        return linear_maps.from_matrix(total, a.in_shape, a.out_shape)
    return None


def _at_bias(linear: linear_maps.LinearMap, parent: Affine) -> np.ndarray:
    """``linear(parent.bias)``, without writing a program out as a matrix."""
    assert parent.bias is not None
    if isinstance(linear, linear_maps.MatrixMap | linear_maps.ScaleMap):
        return np.asarray(linear.matrix() @ parent.bias)
    value = linear.apply(parent.bias.astype(np.float32).reshape(parent.shape))
    return np.asarray(value, np.float64).reshape(-1)


__all__ = [
    "Carry",
    "Product",
    "affine",
    "compile_net",
    "fuse_affine",
    "max_tournament",
    "reshaped",
    "weighted_sum",
]
