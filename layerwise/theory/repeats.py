"""Equal layers at a fixed point: computed once.

In a deep network of equal layers the moments settle: from some layer on, a layer's
operands are those of the layer before up to their scale. There its result is that of
the layer before at the new scale, and nothing is computed. The change that is let go
is below `TOTAL` over all of the equal layers together (each may differ by its share),
so that logarithms of second moments are right to about 1e-3 at any depth.
"""

import dataclasses
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from layerwise.moments.activations import cached_float64
from layerwise.theory import marginal
from layerwise.theory.context import Node, RuleContext
from layerwise.theory.state import Field, State
from layerwise.tracing import primitives


TOTAL = 1e-3
FEWEST = 64
"""Equal nodes below which nothing is looked for."""


class Repeats:
    """Remembers the last result of each kind of node.

    Args:
        ctx: The context.
        nodes: All nodes; those of a kind that is rare are not remembered.
    """

    def __init__(self, ctx: RuleContext, nodes: Sequence[Node]):
        self.ctx = ctx
        self.texts: dict[int, str] = {}
        self.kinds = {n.output: self._kind(n) for n in nodes}
        self.counts = Counter(k for k in self.kinds.values() if k is not None)
        self.known: dict[Hashable, tuple[Sequence[State], tuple[State, ...]]] = {}

    def forward(self, node: Node, states: Sequence[State]) -> State | None:
        """Returns the result on states that are those of an equal node, if known."""
        found = self._recall(node, "forward", states)
        if found is None:
            return None
        shifts, before, (result,) = found
        share = self._share(node)
        if max(shifts) - min(shifts) > share:
            return None
        if not _homogeneous(node):
            return result if abs(shifts[0]) <= share else None
        return _advanced(result, shifts[0], states[0], before[0])

    def backward(
        self, node: Node, states: Sequence[State], flags: Hashable, cotangent: State
    ) -> tuple[State, ...] | None:
        """Returns the operands' cotangents, likewise; they scale with the result's."""
        found = self._recall(node, flags, (*states, cotangent))
        if found is None:
            return None
        (*shifts, by), before, results = found
        if not _homogeneous(node) and max(map(abs, shifts)) > self._share(node):
            return None
        return tuple(_advanced(s, by, cotangent, before[-1]) for s in results)

    def remember(
        self,
        node: Node,
        flags: Hashable,
        operands: Sequence[State],
        results: Sequence[State | None],
    ) -> None:
        """Holds results; `flags` is "forward", or what else a cotangent depends on."""
        kind = self.kinds[node.output]
        if kind is not None and self.counts[kind] >= FEWEST and None not in results:
            kept = tuple(dataclasses.replace(s, terms=()) for s in results if s)
            self.known[kind, flags] = tuple(operands), kept

    def _share(self, node: Node) -> float:
        return TOTAL / self.counts[self.kinds[node.output]]

    def _recall(
        self, node: Node, flags: Hashable, operands: Sequence[State]
    ) -> tuple[list[float], Sequence[State], tuple[State, ...]] | None:
        kind = self.kinds[node.output]
        held = self.known.get((kind, flags)) if kind is not None else None
        if held is None:
            return None
        before, results = held
        shifts = []
        # Fluctuations over networks grow with depth; nothing here depends on them.
        fields = [f for s in operands for _, f in s.parts]
        steady = _homogeneous(node) and all(f.response.is_zero for f in fields)
        for now, then in zip(operands, before, strict=True):
            shift = _shift(now, then, self._share(node), steady)
            if shift is None:
                return None
            shifts.append(shift)
        return shifts, before, results

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


def _advanced(state: State, by: float, now: State, then: State) -> State:
    """Returns a result at another scale; errors and fluctuations add up as before."""
    wider = now.parts[0][1].own_spread - then.parts[0][1].own_spread

    def advance(f: Field) -> Field:
        spread = np.maximum(f.spread + wider, 0.0) if wider else f.spread
        return f.replace(log_scale=f.log_scale + by, spread=spread)

    return state.map(
        advance,
        tolerance=state.tolerance + now.tolerance - then.tolerance,
        pair_tolerance=state.pair_tolerance + now.pair_tolerance - then.pair_tolerance,
    )


def _homogeneous(node: Node) -> bool:
    """Whether a factor on the operands is a factor on the result."""
    if node.name == "pointwise":
        return marginal.two_slopes(cached_float64(node.data)[0]) is not None
    linear = primitives.WEIGHT_OPERATIONS | {"reduce_window_max", "reduce_window_sum"}
    return node.name in linear or (
        node.name in ("add", "sub") and len(node.inputs) == 2
    )


def _shift(now: State, then: State, share: float, steady: bool) -> float | None:
    """Returns log(scale now / scale then) if the two are equal but for it."""
    if len(now.parts) != len(then.parts) or not _alike(now, then, _OWN_STATE):
        return None
    shifts = []
    for (n, f), (m, g) in zip(now.parts, then.parts, strict=True):
        shift = _field_shift(f, g, share, steady) if n == m else None
        if shift is None:
            return None
        shifts.append(shift)
    if max(shifts) - min(shifts) > share:
        return None
    return shifts[0]


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
)


def _alike(a: State | Field, b: State | Field, but: Sequence[str]) -> bool:
    """Whether all attributes but some are equal."""
    for field in dataclasses.fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if field.name in but or x is y:
            continue
        if isinstance(x, np.ndarray) or isinstance(y, np.ndarray):
            if not np.array_equal(x, y):
                return False
        elif x != y:
            return False
    return True


def _field_shift(f: Field, g: Field, share: float, steady: bool) -> float | None:
    if not _alike(f, g, (*_OWN_FIELD, "spread") if steady else _OWN_FIELD):
        return None
    if f.response is not g.response and not (f.response.is_zero and g.response.is_zero):
        return None
    for x, y in ((f.shape, g.shape), (f.profile, g.profile)):
        if x is y:
            continue
        if x is None or y is None or not np.abs(x - y).max() <= share * 10:
            return None
    if f.table is g.table and f.mean is g.mean:
        return f.log_scale - g.log_scale
    if f.table.shape != g.table.shape:
        return None
    top_f, top_g = float(np.max(f.second)), float(np.max(g.second))
    if not (top_f > 0 and top_g > 0):
        return None
    ratio = top_f / top_g
    if np.abs(f.table - ratio * g.table).max() > share * top_f:
        return None
    if np.abs(f.mean - np.sqrt(ratio) * g.mean).max() > share * np.sqrt(top_f):
        return None
    return f.log_scale - g.log_scale + float(np.log(ratio))
