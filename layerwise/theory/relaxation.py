"""Rows of equal layers whose pairs have settled: single positions go on alone.

On a padded map the second moments of single positions near their profile slowly, by a
factor for each layer that is the closer to one the wider the map, long after the
correlations between positions have settled. From there on second moments alone go on,
each layer a sum over taps or a factor of them. That is exact where no second moment
depends on a pair; the last row gets its pairs back, by their correlations. What those
had left to change is stated as their error (`repeats.LEFT`).
"""

import itertools
from collections.abc import Iterator, Mapping

import numpy as np

from layerwise.theory import lags as lagging
from layerwise.theory.context import Node, RuleContext
from layerwise.theory.periods import Periods
from layerwise.theory.repeats import LEFT, TOTAL, Repeats, is_homogeneous, is_near
from layerwise.theory.rules.linear import kernel_of
from layerwise.theory.state import Field, State
from layerwise.theory.taps import over_taps
from layerwise.tracing import primitives
from layerwise.tracing.connections import Axis


class Relaxation:
    """Takes rows of equal layers on by their single positions.

    Args:
        ctx: The context.
        periods: Of the nodes.
        repeats: Says what a node's result depends on.
        pairs_from: First value whose cotangent is held in pairs of positions: what is
            before it is read in single positions alone on the way back.
    """

    def __init__(
        self, ctx: RuleContext, periods: Periods, repeats: Repeats, pairs_from: int
    ):
        self.periods, self.repeats, self.pairs_from = periods, repeats, pairs_from
        self.ctx = ctx
        self.able = ctx.classes == 1 and ctx.level != lagging.NONE
        # Of the latest nodes: their results, and how their positions correlate.
        self.latest: dict[int, State] = {}
        self.correlations: dict[int, np.ndarray] = {}

    def forward(
        self, node: Node, known: Mapping[int, State]
    ) -> Iterator[tuple[int, State]]:
        """Takes the result of the next node.

        Args:
            node: The node.
            known: Results by value, to which those that are yielded are to be added.

        Yields:
            The values of the nodes behind it that go on with its rows, and what they
            are.
        """
        i, nodes = self.periods.at[node.output], self.periods.nodes
        runs = self.periods.runs[i]
        if not (self.able and runs and self._is_alone(i, known[node.output])):
            self.latest.clear()
            self.correlations.clear()
            return
        self.latest[i] = known[node.output]
        while next(iter(self.latest)) <= i - 2 * max(runs):
            del self.latest[next(iter(self.latest))]
        length = self._settled(i)
        if length is not None and nodes[i + 1].output not in known:
            yield from ((nodes[k].output, s) for k, s in self._rows(i, length))

    def _settled(self, i: int) -> int | None:
        """Returns the length of a row that ends with node i, its pairs settled.

        What ends a row is read by the weights that the next one begins with.
        """
        readers = self.periods.readers[i]
        if readers != [i + 1] or not self._weighs(i + 1):
            return None
        self.correlations[i] = self.latest[i].average().correlations[2]
        for length in self.periods.runs[i]:
            found = [self.correlations.get(i - k * length) for k in range(3)]
            rows = range(i - 2 * length + 1, i + 1)
            if any(c is None for c in found) or not self.latest.keys() >= {*rows}:
                continue
            change, last = (
                float(np.abs(a - b).max())  # type: ignore[operator]
                for a, b in itertools.pairwise(found)
            )
            if is_near(change, last):
                return length
        return None

    def _weighs(self, i: int) -> bool:
        """Whether a node is a product with fresh weights."""
        return self.periods.nodes[i].name in primitives.WEIGHT_OPERATIONS

    def _is_alone(self, i: int, state: State) -> bool:
        """Whether single positions of a result are made of those of the one before."""
        node = self.periods.nodes[i]
        return (
            [self.periods.at.get(v) for v in node.inputs] == [i - 1]
            and len(state.parts) == 1
            and not state.sources
            and bool(np.all(state.parts[0][1].second > 0.0))
            and is_homogeneous(node)
            and (not self._weighs(i) or self.repeats.keeps_pairs_apart(node))
        )

    def _rows(self, i: int, length: int) -> Iterator[tuple[int, State]]:
        """Yields the nodes behind i that go on with its rows, and their results."""
        behind = [
            k
            for k in self.periods.after(i, length)
            if self.periods.nodes[k].output < self.pairs_from
        ]
        count = len(behind) // length
        row = [_Moving(self, k, length) for k in range(i - length + 1, i + 1)]
        if not all(moving.is_linear for moving in row):
            return
        change = np.inf
        for number in range(1, count + 1):
            before, one = row[-1].profile, row[-1].state
            moves = change * (count - number + 1) > TOTAL
            for moving in row:
                if moves:
                    moving.move(one)
                else:
                    moving.stay()
                one = moving.state
                yield moving.at, moving.whole() if number == count else one
            change = float(np.abs(row[-1].profile / before - 1.0).max())


class _Moving:
    """A node of one row after another.

    Args:
        relaxation: Whose it is.
        at: The node, in the last row that has pairs.
        length: Nodes in a row.

    Attributes:
        at: The node, in the present row.
        state: Its result, single positions alone.
    """

    def __init__(self, relaxation: Relaxation, at: int, length: int):
        self.relaxation, self.at, self.length, self.rows = relaxation, at, length, 0
        before, self.first = (relaxation.latest[k] for k in (at - length, at))
        self.step = self.first.tolerance - before.tolerance
        self.pair_step = self.first.pair_tolerance - before.pair_tolerance
        # Independent factors of the power: log(1 + spread) adds up.
        self.spread = np.log1p(self.first.parts[0][1].own_spread)
        self.wider = self.spread - np.log1p(before.parts[0][1].own_spread)
        self.state = self.first.map(Field.single)
        self.by = 0.0
        (_, made), (_, read) = (relaxation.latest[k].parts[0] for k in (at, at - 1))
        node = relaxation.periods.nodes[at]
        self.axes: tuple[Axis, ...] = ()
        if node.name == "conv_general_dilated":
            _, self.axes, _ = kernel_of(relaxation.ctx, node)
        self.factor = made.second / over_taps(read.second, self.axes, 0)
        self.shift = made.log_scale - read.log_scale

    @property
    def is_linear(self) -> bool:
        """Whether what a position reads is all that its second moment depends on."""
        return bool(np.ptp(self.factor) <= 1e-9 * self.factor.max())

    @property
    def field(self) -> Field:
        """Of its result."""
        return self.state.parts[0][1]

    @property
    def profile(self) -> np.ndarray:
        """``(*positions,)``: its second moments, of mean 1."""
        return self.field.second / self.field.levels[1]

    def move(self, operand: State) -> None:
        """Goes on to the next row, by what the node reads there."""
        self.at, self.rows = self.at + self.length, self.rows + 1
        (_, read), before = operand.parts[0], self.state.moments()[1]
        second = over_taps(read.second, self.axes, 0) * self.factor
        made = self._at(self.field, second, read.log_scale + self.shift)
        self.state = self._state(made, 0.0)
        self.by = self.state.moments()[1] - before

    def stay(self) -> None:
        """Goes on to the next row, where only the scale changes."""
        self.at, self.rows = self.at + self.length, self.rows + 1
        wider = self._spread() - self.field.own_spread
        self.state = self._state(self.field.advanced(self.by, wider), 0.0)

    def whole(self) -> State:
        """Returns the result with its pairs, which correlate as in the first row."""
        (_, f), now = self.first.parts[0], self.field
        return self._state(self._at(f, now.second, now.log_scale), LEFT)

    def _at(self, field: Field, second: np.ndarray, log_scale: float) -> Field:
        root = np.sqrt(second / field.second)
        wider = (1.0 + self._spread()) / (1.0 + field.own_spread)
        return field.replace(
            mean=field.mean * root,
            table=field.table * lagging.pairs_of(root, field.lags),
            log_scale=log_scale,
            spread=np.maximum((1.0 + field.spread) * wider - 1.0, 0.0),
        ).normalized()

    def _spread(self) -> float:
        return float(np.expm1(min(self.spread + self.rows * self.wider, WIDEST)))

    def _state(self, field: Field, left: float) -> State:
        by = self.rows * self.length
        return self.first.map(
            lambda _: field,
            roots=self.relaxation.periods.moved(self.first.roots, by),
            terms=(),
            tolerance=self.first.tolerance + self.rows * self.step,
            pair_tolerance=self.first.pair_tolerance
            + left
            + self.rows * self.pair_step,
        )


WIDEST = 230.0
"""Largest log(1 + spread): its square is still a number."""
