"""Exact linear and activation regions of piecewise-linear networks.

An *activation region* is where every unit stays on one of its pieces; a *linear region*
is a maximal connected set on which the network is one affine function. Neighbouring
activation regions may belong to one linear region (a unit that nothing reads, two
units that cancel), so the first count bounds the second.

The network is carried through layer by layer: on every cell each unit is an affine
function of the coordinates, kept as a row of coefficients; an affine map multiplies the
rows, an activation divides the cells. Nothing is sampled. A line is exact in rational
arithmetic on demand; a plane is exact up to rounding of the vertices (cuts that miss a
polygon by less than 1e-12 of the box are not made); all of space goes by linear
programs (`polyhedra`).

Example:
    >>> import numpy as np
    >>> from layerwise.expressivity import folding
    >>> net = folding.folding_net(in_size=1, pieces=2, folds=3)
    >>> decompose_line(net, exact=True).n_linear_regions
    10
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Generic, TypeVar, cast

import numpy as np
import scipy.sparse
import scipy.sparse.csgraph
from jaxtyping import Float

from layerwise.errors import InputError, UnsupportedModelError, message
from layerwise.expressivity import polyhedra
from layerwise.expressivity.cells import Cells, Polygons, Segments, evaluate
from layerwise.expressivity.compile import weighted_sum
from layerwise.expressivity.graph import (
    Affine,
    Concat,
    Input,
    Join,
    MaxPool,
    Net,
    Node,
    Pointwise,
    as_fractions,
    concat_values,
    linear_part,
)


# Where to cut input space -------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Slice:
    """An affine subspace of input space: ``origin + coordinates @ basis``.

    Attributes:
        origin: The point at coordinates zero, flat, (d,).
        basis: (k, d).
    """

    origin: np.ndarray
    basis: np.ndarray

    @classmethod
    def through(cls, *points: Any, orthonormal: bool = True) -> "Slice":
        """Returns the line through two points, or the plane through three.

        The first point is the origin. With an orthonormal basis lengths and areas in
        coordinates are those of input space; without one (rational arithmetic) the
        basis is the differences to the first point.

        Raises:
            InputError: If the points are not distinct, or lie on one line.
        """
        flat = np.stack([np.asarray(p, np.float64).reshape(-1) for p in points])
        distinct = len(np.unique(flat, axis=0))
        basis = flat[1:] - flat[0]
        shape = {2: "line", 3: "plane"}.get(len(points), "subspace")
        if distinct < len(points):
            raise InputError(
                message(
                    f"A {shape} through {len(points)} points, {distinct} of them "
                    "distinct.",
                    f"A {shape} needs {len(points)} distinct points.",
                    "Pass distinct points, for example three different examples.",
                )
            )
        if np.linalg.matrix_rank(basis, tol=1e-9 * np.abs(basis).max()) < len(basis):
            raise InputError(
                message(
                    f"The {len(points)} points of the {shape} lie on one line.",
                    "They leave the directions undetermined.",
                    "Move one point off the line through the others.",
                )
            )
        if orthonormal:
            q, r = np.linalg.qr(basis.T)
            basis = (q * np.sign(np.diag(r))).T
        return cls(flat[0], basis)

    def embed(self, coordinates: Any) -> np.ndarray:
        """Returns the points of input space at coordinates (..., k), as (..., d)."""
        return self.origin + np.asarray(coordinates, np.float64) @ self.basis

    def coordinates(self, points: Any) -> np.ndarray:
        """Returns the coordinates (..., k) of the nearest points of the subspace."""
        offset = np.asarray(points, np.float64) - self.origin
        return offset @ np.linalg.pinv(self.basis)


def axes(size: int) -> Slice:
    """Returns all of input space as a subspace of itself."""
    return Slice(np.zeros(size), np.eye(size))


# Decompositions -----------------------------------------------------------------------


CellsT = TypeVar("CellsT", bound=Cells)


@dataclasses.dataclass(frozen=True, eq=False)
class Decomposition(Generic[CellsT]):
    """The cells on which a network is affine, one per activation region.

    Attributes:
        cells: Where they are.
        rows: The network on each cell, (n_cells, outputs, k + 1): value at coordinates
            zero, then the gradient.
        pattern: Which piece each unit is on, (n_cells, units), in evaluation order; a
            max pool counts as a unit whose piece is the position of the maximum.
        subspace: The part of input space that was decomposed.
    """

    cells: CellsT
    rows: np.ndarray
    pattern: np.ndarray
    subspace: Slice

    @property
    def n_activation_regions(self) -> int:
        """Regions on which no unit changes its piece."""
        return self.cells.n_cells

    @property
    def n_linear_regions(self) -> int:
        """Maximal connected regions on which the network is one affine function."""
        return int(self.linear_region.max()) + 1

    @functools.cached_property
    def linear_region(self) -> np.ndarray:
        """The linear region of each cell, numbered from zero, (n_cells,)."""
        n = self.cells.n_cells
        if isinstance(self.cells, polyhedra.Polyhedra):
            pairs = self._equal_pairs()
        else:
            pairs = self.cells.adjacency()
            pairs = pairs[self._equal(pairs[:, 0], pairs[:, 1])]
        graph = scipy.sparse.coo_array(
            (np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), (n, n)
        )
        return scipy.sparse.csgraph.connected_components(graph, directed=False)[1]

    def _equal(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Whether cells have the same affine map (to 1e-9; exactly for fractions)."""
        gap = abs(self.rows[a] - self.rows[b]).reshape(len(a), self.rows[0].size)
        largest = gap.max(axis=1, initial=0)
        if self.rows.dtype == object:
            return (largest == 0).astype(bool)
        return largest <= 1e-9 * np.abs(self.rows).max()

    def _equal_pairs(self) -> np.ndarray:
        """Adjacent equal pairs; a program per pair, so equality is asked first."""
        assert isinstance(self.cells, polyhedra.Polyhedra)
        pairs = []
        for i in range(1, self.cells.n_cells):
            before = np.arange(i)
            for j in before[self._equal(before, np.full(i, i))]:
                if self.cells.touch(i, int(j)):
                    pairs.append((i, j))
        return np.asarray(pairs, np.int64).reshape(-1, 2)

    def values(self, coordinates: np.ndarray) -> np.ndarray:
        """Returns the network on each cell at one coordinate per cell (n_cells, k)."""
        return evaluate(self.rows, coordinates)


def decompose_line(
    net: Net,
    line: Slice | None = None,
    *,
    low: Any = -np.inf,
    high: Any = np.inf,
    exact: bool = False,
) -> Decomposition[Segments]:
    """Returns the linear pieces of a network along a line.

    Args:
        net: A network of affine maps and continuous piecewise-linear activations,
            merges and max pools (`translate.net_of` makes one of a Flax model).
        line: The line; the input axis itself for one-dimensional input.
        low: Left end, in the line's coordinate.
        high: Right end.
        exact: Whether to compute with `Fraction` objects. Exact for the float weights
            of the network; slower by two orders of magnitude.

    Returns:
        The intervals in order. O(pieces * width * depth).

    Raises:
        UnsupportedModelError: If an activation is not piecewise linear.
    """
    line = _subspace(net, line, 1)
    return _decompose(net, Segments.whole(low, high, exact=exact), line)


def decompose_plane(
    net: Net,
    plane: Slice | None = None,
    *,
    low: Sequence[float | int] = (-1.0, -1.0),
    high: Sequence[float | int] = (1.0, 1.0),
) -> Decomposition[Polygons]:
    """Returns the polygons on which a network is affine, in a rectangle of a plane.

    Args:
        net: As for `decompose_line`.
        plane: The plane; input space itself for two-dimensional input.
        low: Lower left corner, in the plane's coordinates.
        high: Upper right corner.

    Raises:
        UnsupportedModelError: If an activation is not piecewise linear.
    """
    plane = _subspace(net, plane, 2)
    cells = Polygons.box(np.asarray(low, np.float64), np.asarray(high, np.float64))
    return _decompose(net, cells, plane)


def decompose_space(
    net: Net, *, bound: float | int | None = None
) -> Decomposition[polyhedra.Polyhedra]:
    """Returns all regions of a small network, by linear programs.

    Counts every region that holds a ball of radius 1e-8. About a millisecond per region
    and unit: meant for tens of units.

    Args:
        net: As for `decompose_line`.
        bound: Half the side of a cube about zero; all of space if None.

    Raises:
        UnsupportedModelError: If an activation is not piecewise linear.
    """
    cells = polyhedra.Polyhedra.whole(net.input.size, bound)
    return _decompose(net, cells, axes(net.input.size))


def _subspace(net: Net, given: Slice | None, dim: int) -> Slice:
    d = net.input.size
    subspace = axes(d) if given is None else given
    if subspace.basis.shape != (dim, d):
        raise InputError(
            message(
                f"A subspace of {subspace.basis.shape[0]} dimensions in a space of "
                f"{subspace.basis.shape[1]}, for a network of {d} inputs.",
                f"This decomposition is of a {dim}-dimensional part of input space.",
                f"Pass Slice.through(<{dim + 1} points of {d} entries>).",
            )
        )
    return subspace


# Propagation --------------------------------------------------------------------------


def _decompose(net: Net, cells: CellsT, subspace: Slice) -> Decomposition[CellsT]:
    rows = np.concatenate([subspace.origin[None], subspace.basis])[None]
    if isinstance(cells, Segments) and cells.low.dtype == object:
        rows = as_fractions(rows)
    state = _State(cells, {net.input: rows}, [])
    nodes = net.nodes()
    last_reader = {p: node for node in nodes for p in node.parents}
    for node in nodes:
        if not isinstance(node, Input):
            state.add(node)
        for value in [v for v in state.values if last_reader.get(v) is node]:
            del state.values[value]
    out = state.values[net.output].swapaxes(1, 2)
    final = cast(CellsT, state.cells)
    return Decomposition(final, out, state.pattern(), subspace)


@dataclasses.dataclass(eq=False)
class _State:
    """Cells, and the affine functions of all values that are still to be read.

    Attributes:
        cells: The partition so far.
        values: Node -> (n_cells, k + 1, size): constant and gradient of each entry.
        stages: Which piece each unit was found on, and where each later cell came
            from: (pieces or None, owner or None).
    """

    cells: Cells
    values: dict[Node, np.ndarray]
    stages: list[tuple[np.ndarray | None, np.ndarray | None]]

    def add(self, node: Node) -> None:
        """Computes one node on every cell, dividing cells where it has to."""
        match node:
            case Affine():
                self.values[node] = _affine_rows(node, self._parents(node))
            case Concat():
                self.values[node] = concat_values(node, self._parents(node))
            case Pointwise():
                self._pointwise(node)
            case MaxPool():
                self._max_pool(node, node.parents[0], node.windows)
            case Join() if node.kind == "max":
                self._max_join(node)
            case Join() if node.kind in ("add", "mean", "subtract"):
                factors = [1.0] * len(node.parents)
                if node.kind == "mean":
                    factors = [1.0 / len(factors)] * len(factors)
                elif node.kind == "subtract":
                    factors = [1.0, -1.0]
                total = weighted_sum(node.parents, factors)
                self.values[node] = _affine_rows(total, self._parents(node))
            case _:
                raise _not_piecewise_linear(str(getattr(node, "kind", node)))

    def _parents(self, node: Node) -> list[np.ndarray]:
        return [self.values[p] for p in node.parents]

    def _pointwise(self, node: Pointwise) -> None:
        pieces = node.activation.pieces
        if pieces is None:
            raise _not_piecewise_linear(node.activation.name)
        source = node.parents[0]
        owner = np.arange(self.cells.n_cells)
        start = self.values[source]
        for unit in range(node.size):
            for t in pieces.breaks:
                row = start[owner][:, :, unit]
                row[:, 0] = row[:, 0] - _like(t, row)
                self.cells, inner, _ = self.cells.partition(
                    np.stack([np.zeros_like(row), row], axis=1)
                )
                owner = owner[inner]
        self._moved(owner)
        rows = self.values[source]
        at = evaluate(rows.swapaxes(1, 2), self.cells.interior())
        slopes, offsets = np.asarray(pieces.slopes), np.asarray(pieces.intercepts)
        if rows.dtype == object:
            slopes, offsets = as_fractions(slopes), as_fractions(offsets)
        index = np.zeros(at.shape, np.int16)
        for t in pieces.breaks:
            index += (at >= _like(t, rows)).astype(np.int16)
        out = rows * slopes[index][:, None, :]
        out[:, 0] += offsets[index]
        self.values[node] = out
        self.stages.append((index, None))

    def _max_join(self, node: Join) -> None:
        size = node.size
        stacked = Concat(node.parents, (len(node.parents) * size,), 0)
        self.values[stacked] = np.concatenate(self._parents(node), axis=-1)
        starts = np.arange(len(node.parents)) * size
        self._max_pool(node, stacked, [starts + i for i in range(size)])
        del self.values[stacked]

    def _max_pool(self, node: Node, source: Node, windows: Sequence[Any]) -> None:
        owner = np.arange(self.cells.n_cells)
        start = self.values[source]
        for window in windows:
            rows = start[owner][:, :, window].swapaxes(1, 2)
            self.cells, inner, _ = self.cells.partition(rows)
            owner = owner[inner]
        self._moved(owner)
        rows = self.values[source].swapaxes(1, 2)
        at = evaluate(rows, self.cells.interior())
        out = np.empty((self.cells.n_cells, node.size, rows.shape[2]), rows.dtype)
        index = np.empty((self.cells.n_cells, node.size), np.int16)
        everyone = np.arange(self.cells.n_cells)
        for i, window in enumerate(windows):
            index[:, i] = np.argmax(at[:, window], axis=1)
            out[:, i] = rows[everyone, np.asarray(window)[index[:, i]]]
        self.values[node] = out.swapaxes(1, 2)
        self.stages.append((index, None))

    def _moved(self, owner: np.ndarray) -> None:
        """Every value follows its cell to the parts that the cell was divided into."""
        self.values = {node: value[owner] for node, value in self.values.items()}
        self.stages.append((None, owner))

    def pattern(self) -> np.ndarray:
        """Returns the pieces of all units on the final cells, (n_cells, units)."""
        index, columns = np.arange(self.cells.n_cells), []
        for pieces, owner in reversed(self.stages):
            if owner is not None:
                index = owner[index]
            if pieces is not None:
                columns.append(pieces[index])
        none = np.zeros((self.cells.n_cells, 0), np.int16)
        return np.concatenate([none, *reversed(columns)], axis=1)


def _like(t: float, rows: np.ndarray) -> Any:
    return as_fractions(np.asarray([t]))[0] if rows.dtype == object else t


def _affine_rows(node: Affine, values: list[np.ndarray]) -> np.ndarray:
    """The rows of an affine map's outputs; what is zero to rounding becomes zero.

    A sum that cancels leaves 1e-17 instead of 0, and the normalized line of such a row
    would cut cells anywhere. Terms below 1e-13 of what was added up are rounding.
    """
    out = linear_part(node, values)
    exact = out.dtype == object
    if node.bias is not None:
        out[:, 0] += as_fractions(node.bias) if exact else node.bias
    if not exact:
        size = _magnitude(node, values)
        out[np.abs(out) <= 1e-13 * size] = 0.0
    return out


def _magnitude(node: Affine, values: list[np.ndarray]) -> Float[np.ndarray, "..."]:
    """The sum of the absolute values of the terms of each entry of the result."""
    total: Any = 0.0
    for linear, value in zip(node.maps, values, strict=True):
        flat = np.abs(value).reshape(-1, linear.in_size)
        matrix: Any = abs(linear.matrix())
        total = total + (matrix @ flat.T).T.reshape(*value.shape[:-1], node.size)
    if node.bias is not None:
        total[:, 0] += np.abs(node.bias)
    return total


def _not_piecewise_linear(name: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        message(
            f"The activation or merge {name!r} is not piecewise linear.",
            "A network has linear regions only if every step is affine on pieces: "
            "ReLU, leaky ReLU, clip, absolute value, max pool and merges by sum are.",
            "Replace it, or study this model with layerwise.measure(...) instead.",
        )
    )
