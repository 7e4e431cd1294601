"""Rows of equal layers at a fixed point: all that are left, at once.

`repeats` answers a node by an equal one before it, at another scale. Where three rows
of nodes were answered so, one after another, and each differs from the row before by
the same step, so does every later row that reads and is read as they are: its moments
are those of the last row, as many steps on. What this adds to the error of a logarithm
is that a step may itself change by `TOTAL` over all rows together.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from layerwise.theory.context import Node
from layerwise.theory.repeats import TOTAL
from layerwise.theory.state import State


ROWS = 3
"""Rows that have to be answered before others are taken for steps of them."""
NEAREST = 4
"""Equal nodes before a node that are tried for the one a row before it."""


class Periods:
    """Which nodes stand in rows, each reading what is a row before the next one's.

    Args:
        nodes: All nodes, in program order.
        kinds: What makes two nodes equal but for their operands, by output.
        apart: Values that are read or made in another way too: outputs of the program,
            and products of weights that were used before.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        kinds: Mapping[int, Any],
        apart: frozenset[int],
    ):
        self.nodes, self.apart = nodes, apart
        self.at = {n.output: i for i, n in enumerate(nodes)}
        self.readers: list[list[int]] = [[] for _ in nodes]
        for i, node in enumerate(nodes):
            for v in node.inputs:
                if v in self.at:
                    self.readers[self.at[v]].append(i)
        # Per node: length of a row -> nodes in a row up to here that equal one before.
        self.runs: list[dict[int, int]] = []
        latest: dict[Any, list[int]] = {}
        for i, node in enumerate(nodes):
            kind, run = kinds[node.output], {}
            if kind is not None and node.output not in apart:
                equal = latest.setdefault(kind, [])
                for j in equal[-NEAREST:]:
                    if self._reads_alike(i, j):
                        run[i - j] = 1 + (self.runs[-1].get(i - j, 0) if i else 0)
                equal.append(i)
            self.runs.append(run)

    def _reads_alike(self, i: int, j: int) -> bool:
        """Whether node i reads what is as far behind what node j reads as it is."""
        mine, other = ([self.at.get(v) for v in self.nodes[k].inputs] for k in (i, j))
        return None not in (*mine, *other) and all(
            a - b == i - j  # type: ignore[operator]
            for a, b in zip(mine, other, strict=True)
        )

    def moved(self, roots: frozenset[int], by: int) -> frozenset[int]:
        """Returns the outputs of the nodes that stand so much farther on."""
        nodes, at = self.nodes, self.at
        return frozenset(
            nodes[at[r] + by].output if r in at and 0 <= at[r] + by < len(nodes) else r
            for r in roots
        )

    def after(self, i: int, length: int) -> Iterator[int]:
        """Yields the nodes behind i that go on with its rows."""
        for k in range(i + 1, len(self.nodes)):
            if length not in self.runs[k]:
                return
            yield k

    def before(self, i: int, length: int) -> Iterator[int]:
        """Yields the nodes before i that go on with its rows, and are read as they."""
        for k in range(i - 1, -1, -1):
            readers = [[r - at for r in self.readers[at]] for at in (k, k + length)]
            if length not in self.runs[k + length] or readers[0] != readers[1]:
                return
            if self.nodes[k].output in self.apart:
                return
            yield k

    def lengths(self, first: int, last: int) -> list[int]:
        """Returns the lengths of rows, of which nodes first to last are `ROWS`."""
        return [
            p
            for p, count in self.runs[last].items()
            if last - first + 1 >= ROWS * p and count >= (ROWS - 1) * p
        ]


class Row:
    """What a sweep found at nodes that it had answered, one after another.

    Args:
        periods: Of the nodes.
        sign: 1 for a sweep through the program, -1 for one back.
    """

    def __init__(self, periods: Periods, sign: int):
        self.periods, self.sign = periods, sign
        self.found: dict[int, tuple[State, ...]] = {}
        self.steps: dict[int, list[np.ndarray]] = {}

    def clear(self) -> None:
        """Forgets it all: a node was not answered."""
        self.found.clear()

    def add(self, i: int, found: tuple[State, ...]) -> int | None:
        """Takes what was found at the next node; returns a row's length if settled."""
        self.found[i] = found
        first, last = sorted((next(iter(self.found)), i))
        for p in self.periods.lengths(first, last):
            if len(self.found) % p:
                continue
            steps = {
                k: self._step(k, p) for k in range(i, i - self.sign * p, -self.sign)
            }
            self.steps = {k: v for k, v in steps.items() if v is not None}
            if len(self.steps) == p:
                return p
        return None

    def ahead(self, i: int, k: int, length: int) -> tuple[State, ...]:
        """Returns what there will be at node k, by the row that ends with node i."""
        rows = -(-abs(k - i) // length)
        base, by = k - self.sign * rows * length, self.sign * rows * length
        made: dict[int, State] = {}
        for state, step in zip(self.found[base], self.steps[base], strict=True):
            if id(state) not in made:
                made[id(state)] = self._advanced(state, rows * step, by)
        return tuple(made[id(s)] for s in self.found[base])

    def _step(self, i: int, length: int) -> list[np.ndarray] | None:
        """Returns by what the states at node i differ from those a row before it."""
        rows = [self.found.get(i - self.sign * k * length) for k in range(ROWS)]
        if None in rows or len({len(r) for r in rows if r}) != 1:
            return None
        steps = []
        for states in zip(*rows, strict=True):  # type: ignore[arg-type]
            if not self._alike(states, length):
                return None
            now, then, first = map(_numbers, states)
            slack = TOTAL / len(self.periods.nodes) ** 2 + 1e-15 * np.abs(now)
            if np.any(np.abs(now - 2.0 * then + first) > slack):
                return None
            steps.append(0.5 * (now - first))
        return steps

    def _alike(self, states: Sequence[State], length: int) -> bool:
        """Whether only what a step changes differs, and the tables not at all."""
        now, *others = states
        if len(now.parts) != 1:
            return False
        return all(
            self.periods.moved(then.roots, self.sign * back * length) == now.roots
            and _constant(then) == _constant(now)
            and abs(_level(then) - _level(now)) <= 1e-12
            for back, then in enumerate(others, 1)
        )

    def _advanced(self, state: State, step: np.ndarray, by: int) -> State:
        log_scale, spread, tolerance, pair_tolerance = map(float, step)
        return state.map(
            lambda f: f.advanced(log_scale, spread),
            roots=self.periods.moved(state.roots, by),
            tolerance=state.tolerance + tolerance,
            pair_tolerance=state.pair_tolerance + pair_tolerance,
        )


def _constant(state: State) -> tuple[Any, ...]:
    """Returns what no step changes."""
    own = (state.grade, state.mean_grade, state.sources, state.terms, state.chosen)
    return (*own, len(state.parts))


def _level(state: State) -> float:
    """Returns the logarithm of the table's own level."""
    return state.moments()[1] - state.parts[0][1].log_scale


def _numbers(state: State) -> np.ndarray:
    """Returns what a step changes."""
    (_, field), *_ = state.parts
    return np.array(
        [field.log_scale, field.own_spread, state.tolerance, state.pair_tolerance]
    )
