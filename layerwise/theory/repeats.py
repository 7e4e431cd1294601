"""Equal layers at a fixed point: computed once.

In a deep network of equal layers the moments settle: from some layer on, a layer's
operands are those of the layer before up to their scale. There its result is that of
the layer before at the new scale, and nothing is computed. The change that is let go
is below `TOTAL` over all of the equal layers together (each may differ by its share),
so that logarithms of second moments are right to about 1e-3 at any depth.

Correlations between positions settle as a power of the depth, slowly. Where no second
moment of a result depends on them, it is enough that `LEFT` of their size is left to
change, judged by how fast the change falls off; that is stated as their error.
"""

import dataclasses
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from layerwise.moments.activations import cached_float64, two_slopes
from layerwise.theory.context import Node, RuleContext
from layerwise.theory.state import Field, State
from layerwise.tracing import primitives


TOTAL = 1e-3
LEFT = 0.005
FEWEST = 64
"""Equal nodes below which nothing is looked for."""


class _Match(NamedTuple):
    """How moments compare with others that are equal to them but for their scale.

    Attributes:
        shift: Logarithm of the ratio of the scales.
        change: Largest difference of a pair, as a share of the second moment.
    """

    shift: float
    change: float


class _Compared(dict[Hashable, tuple[tuple[np.ndarray, ...], _Match | None]]):
    """The latest comparisons of large tables: in settled layers they are the same."""

    def match(self, f: Field, g: Field, share: float) -> _Match | None:
        """Returns how the tables and means of two fields compare."""
        arrays = (f.table, g.table, f.mean, g.mean)
        key = id(f.table), id(g.table), share
        if key in self:
            held, match = self[key]
            if all(x is y for x, y in zip(held, arrays, strict=True)):
                return match and match._replace(
                    shift=match.shift + f.log_scale - g.log_scale
                )
        match = _compare(f, g, share)
        if f.table.size > 4096:
            while len(self) >= 16:
                del self[next(iter(self))]
            self[key] = arrays, match
        return match and match._replace(shift=match.shift + f.log_scale - g.log_scale)


class Repeats:
    """Remembers the last result of each kind of node.

    Args:
        ctx: The context.
        nodes: All nodes; those of a kind that is rare are not remembered.
    """

    def __init__(self, ctx: RuleContext, nodes: Sequence[Node]):
        self.ctx = ctx
        self.texts: dict[int, str] = {}
        self.origins: dict[int, Hashable] = {}
        self.kinds = {n.output: self._behind(n) for n in nodes}
        self.counts = Counter(k for k in self.kinds.values() if k is not None)
        self.known: dict[Hashable, tuple[Sequence[State], tuple[State, ...]]] = {}
        self.compared = _Compared()
        self.changes: dict[Hashable, tuple[float, bool]] = {}

    def forward(self, node: Node, states: Sequence[State]) -> State | None:
        """Returns the result on states that are those of an equal node, if known."""
        found = self._recall(node, "forward", states)
        if found is None:
            return None
        shifts, before, (result,), left = found
        share = self._share(node)
        if max(shifts) - min(shifts) > share:
            return None
        if not is_homogeneous(node):
            return result if abs(shifts[0]) <= share else None
        return _advanced(result, shifts[0], states[0], before[0], left)

    def backward(
        self,
        node: Node,
        states: Sequence[State],
        flags: tuple[bool, ...],
        cotangent: State,
    ) -> tuple[State, ...] | None:
        """Returns the operands' cotangents, likewise; they scale with the result's."""
        flags, operands = self._read(node, states, flags, cotangent)
        found = self._recall(node, flags, operands)
        if found is None:
            return None
        (*shifts, by), before, results, left = found
        still = max(map(abs, shifts), default=0.0) <= self._share(node)
        if not (still or is_homogeneous(node)):
            return None
        return tuple(_advanced(s, by, cotangent, before[-1], left) for s in results)

    def remember_back(
        self,
        node: Node,
        states: Sequence[State],
        flags: tuple[bool, ...],
        cotangent: State,
        results: Sequence[State | None],
    ) -> None:
        """Holds the operands' cotangents; `flags`: what else they depend on."""
        self.remember(node, *self._read(node, states, flags, cotangent), results)

    def _read(
        self,
        node: Node,
        states: Sequence[State],
        flags: tuple[bool, ...],
        cotangent: State,
    ) -> tuple[tuple[bool, ...], Sequence[State]]:
        """Returns what the operands' cotangents depend on: flags and moments."""
        still = all(f.response.is_zero for _, f in cotangent.parts)
        alone = flags[0] and still and self.passes_alike(node, states)
        return (*flags, alone), (cotangent,) if alone else (*states, cotangent)

    def passes_alike(self, node: Node, states: Sequence[State]) -> bool:
        """Whether single positions of a cotangent pass alike whatever the values are.

        If it does not respond to their fluctuation, that is.
        """
        if node.name in primitives.WEIGHT_OPERATIONS:
            return self.keeps_pairs_apart(node)
        if node.name != "pointwise" or not is_homogeneous(node):
            return False
        return all(
            f.shape is None and f.empty == 0.0 and not f.mean.any() and f.second.all()
            for s in states
            for _, f in s.parts
        )

    def remember(
        self,
        node: Node,
        flags: Hashable,
        operands: Sequence[State],
        results: Sequence[State | None],
    ) -> None:
        """Holds results; `flags` is "forward", or see `remember_back`."""
        kind = self.kinds[node.output]
        if kind is not None and self.counts[kind] >= FEWEST and None not in results:
            kept = tuple(dataclasses.replace(s, terms=()) for s in results if s)
            self.known[kind, flags] = tuple(operands), kept

    def _share(self, node: Node) -> float:
        return TOTAL / self.counts[self.kinds[node.output]]

    def _recall(
        self, node: Node, flags: Hashable, operands: Sequence[State]
    ) -> tuple[list[float], Sequence[State], tuple[State, ...], float] | None:
        """Returns (shifts, operands held, their results, what is left of pairs)."""
        kind = self.kinds[node.output]
        held = self.known.get((kind, flags)) if kind is not None else None
        if held is None:
            return None
        before, results = held
        shifts, change, share = [], 0.0, self._share(node)
        # Fluctuations over networks grow with depth; nothing here depends on them.
        fields = [f for s in operands for _, f in s.parts]
        steady = is_homogeneous(node) and all(f.response.is_zero for f in fields)
        for now, then in zip(operands, before, strict=True):
            match = _shift(now, then, share, steady, self.compared)
            if match is None:
                return None
            shifts.append(match.shift)
            change = max(change, match.change)
        if change <= share:
            return shifts, before, results, 0.0
        settled = self._has_settled((kind, flags), change)
        if not (settled and steady and self.keeps_pairs_apart(node)):
            return None
        return shifts, before, results, LEFT

    def _has_settled(self, key: Hashable, change: float) -> bool:
        """Whether pairs have little left to change, by the last change and this one."""
        last, settled = self.changes.get(key, (0.0, False))
        if change != last:
            settled = is_near(change, last)
            self.changes[key] = change, settled
        return settled

    def keeps_pairs_apart(self, node: Node) -> bool:
        """Whether no second moment of the result depends on a pair of the operands."""
        if node.name in primitives.WEIGHT_OPERATIONS:
            flow = self.ctx.traced.flow
            weights = [a for a in node.equations[0].inputs if not flow.is_signal(a)]
            return all(self.ctx.weight(a).draws is None for a in weights)
        return node.name in ("pointwise", "add", "sub")

    def _behind(self, node: Node) -> Hashable | None:
        """Returns the kind of a node, and of the product of weights that it is behind.

        Layers that take turns are told apart by that.
        """
        kind = self._kind(node)
        origin = self.origins.get(node.inputs[0]) if node.inputs else None
        if node.name in primitives.WEIGHT_OPERATIONS:
            origin = None if kind is None else hash(kind)
            self.origins[node.output] = origin
            return kind
        self.origins[node.output] = origin
        return kind and (kind, origin)

    def _kind(self, node: Node) -> Hashable | None:
        """Returns what makes two nodes equal but for their operands' moments."""
        if node.name in ("opaque", "attention") or any(
            v in self.ctx.data for v in node.inputs
        ):
            return None
        flow = self.ctx.traced.flow
        parameters: list[Hashable] = []
        if node.name == "pointwise" or node.name == "normalization":
            parameters.append(node.data)
        else:
            (equation,) = node.equations
            parameters.append(self._text(equation.eqn))
            parameters.append(equation.outputs.index(node.output))
            for atom in equation.inputs:
                if flow.is_signal(atom):
                    parameters.append(node.inputs.index(atom))  # type: ignore[arg-type]
                    continue
                moments = self.ctx.weight(atom)
                shape = self.ctx.shape(atom) if isinstance(atom, int) else ()
                value = moments.value
                if value is not None and value.size > 65536:
                    return None
                entries = None if value is None else value.tobytes()
                drawn = moments.draws
                law = None if drawn is None else float(np.sum(np.square(drawn) ** 2))
                parameters.append((moments.second, moments.mean, shape, entries, law))
        shapes = tuple(self.ctx.shape(v) for v in (*node.inputs, node.output))
        return (node.name, shapes, *parameters)

    def _text(self, eqn: object) -> str:
        if id(eqn) not in self.texts:
            self.texts[id(eqn)] = str(eqn.params)  # type: ignore[attr-defined]
        return self.texts[id(eqn)]


def _advanced(state: State, by: float, now: State, then: State, left: float) -> State:
    """Returns a result at another scale; errors and fluctuations add up as before."""
    wider = now.parts[0][1].own_spread - then.parts[0][1].own_spread
    return state.map(
        lambda f: f.advanced(by, wider),
        tolerance=state.tolerance + now.tolerance - then.tolerance,
        pair_tolerance=state.pair_tolerance
        + max(now.pair_tolerance - then.pair_tolerance, left),
    )


def is_near(change: float, last: float) -> bool:
    """Whether at most `LEFT` is left to change, by the latest change and the last one.

    A power of the depth falls off as a geometric series does, ever slower: what is left
    is at most twice that series' (for the second power).
    """
    return 0.0 < change < last and 2.0 * change / (1.0 - change / last) <= LEFT


def is_homogeneous(node: Node) -> bool:
    """Whether a factor on the operands is a factor on the result."""
    if node.name == "pointwise":
        return two_slopes(cached_float64(node.data)[0]) is not None
    linear = primitives.WEIGHT_OPERATIONS | {"reduce_window_max", "reduce_window_sum"}
    return node.name in linear or (
        node.name in ("add", "sub") and len(node.inputs) == 2
    )


def _shift(
    now: State, then: State, share: float, steady: bool, compared: _Compared
) -> _Match | None:
    """Returns how two values compare, if they are equal but for scale and pairs."""
    if len(now.parts) != len(then.parts) or not _alike(now, then, _OWN_STATE):
        return None
    found = []
    for (n, f), (m, g) in zip(now.parts, then.parts, strict=True):
        match = _field_shift(f, g, share, steady, compared) if n == m else None
        if match is None:
            return None
        found.append(match)
    shifts = [m.shift for m in found]
    if max(shifts) - min(shifts) > share:
        return None
    return _Match(shifts[0], max(m.change for m in found))


_OWN_STATE = ("parts", "roots", "terms", "tolerance", "pair_tolerance")
_OWN_FIELD = (
    "mean",
    "table",
    "log_scale",
    "shape",
    "joint",
    "through",
    "response",
    "profile",
    "amplitude",
    "powers",
    "peaked",
    "settled",
)


_STATE = tuple(f.name for f in dataclasses.fields(State))
_FIELD = tuple(f.name for f in dataclasses.fields(Field))


def _alike(a: State | Field, b: State | Field, but: Sequence[str]) -> bool:
    """Whether all attributes but some are equal."""
    for name in _STATE if isinstance(a, State) else _FIELD:
        if name in but:
            continue
        x, y = getattr(a, name), getattr(b, name)
        if x is y:
            continue
        if isinstance(x, np.ndarray) or isinstance(y, np.ndarray):
            if not np.array_equal(x, y):
                return False
        elif x != y:
            return False
    return True


def _field_shift(
    f: Field, g: Field, share: float, steady: bool, compared: _Compared
) -> _Match | None:
    if not _alike(f, g, (*_OWN_FIELD, "spread", "mixture") if steady else _OWN_FIELD):
        return None
    if f.response is not g.response and not (f.response.is_zero and g.response.is_zero):
        return None
    for x, y in (
        (f.shape, g.shape),
        (f.profile, g.profile),
        (f.amplitude, g.amplitude),
        (f.powers, g.powers),
    ):
        if x is y:
            continue
        if x is None or y is None or x.shape != y.shape:
            return None
        if not np.abs(x - y).max() <= share * 10:
            return None
    if f.table is g.table and f.mean is g.mean:
        return _Match(f.log_scale - g.log_scale, 0.0)
    if f.table.shape != g.table.shape:
        return None
    return compared.match(f, g, share)


def _compare(f: Field, g: Field, share: float) -> _Match | None:
    """Returns how tables and means compare, scales left out."""
    top_f, top_g = float(np.max(f.second)), float(np.max(g.second))
    if not (top_f > 0 and top_g > 0):
        return None
    ratio = top_f / top_g
    if np.abs(f.second - ratio * g.second).max() > share * top_f:
        return None
    if np.abs(f.mean - np.sqrt(ratio) * g.mean).max() > share * np.sqrt(top_f):
        return None
    change = float(np.abs(f.table - ratio * g.table).max()) / top_f
    return _Match(float(np.log(ratio)), change)
