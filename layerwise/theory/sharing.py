"""Which random roots a value has: fresh weights, shared ones, pieces of one product.

Two signals with disjoint roots are independent in a wide network. The result of a
product with fresh weights has a root of its own. Products with the same weights (tied
layers, the steps of a recurrent network) share one: a chain through them is predicted
in the wide limit, but nothing may take two of them for independent. Weights used again
in another role (transposed, as a decoder's often are) are not fresh in any limit. The
channels of one product are independent of each other, so that its pieces have roots of
their own where nothing reads the whole.
"""

import dataclasses
import itertools
from collections.abc import Sequence

from layerwise.theory.context import Node, RuleContext
from layerwise.theory.registry import NoSoundRule
from layerwise.theory.state import Grade, State
from layerwise.tracing import primitives


@dataclasses.dataclass(frozen=True)
class _Use:
    """How a node uses weights: which part of a leaf, in which arrangement."""

    part: str
    role: str


class Sharing:
    """The roots of every node's result.

    Args:
        ctx: The context.
        nodes: All nodes.
    """

    def __init__(self, ctx: RuleContext, nodes: Sequence[Node]):
        self.ctx = ctx
        self.producers = ctx.traced.graph.producers()
        self.consumers = ctx.traced.graph.consumers()
        self.uses: dict[int, _Use] = {}
        by_leaf: dict[str, list[Node]] = {}
        for node in nodes:
            leaves = self._leaves(node)
            if leaves:
                self.uses[node.output] = self._use(node)
                for name in leaves:
                    by_leaf.setdefault(name, []).append(node)
        self.first: dict[int, int] = {}
        self.mixed: set[int] = set()
        for users in by_leaf.values():
            self._group(users)

    def _group(self, users: list[Node]) -> None:
        parts: dict[str, list[Node]] = {}
        for node in users:
            parts.setdefault(self.uses[node.output].part, []).append(node)
        overlapping = len(parts) > 1 and "" in parts
        for same in [users] if overlapping else parts.values():
            roles = {self.uses[n.output] for n in same}
            for node in same[1:]:
                self.first.setdefault(node.output, same[0].output)
                if len(roles) > 1:
                    self.mixed.add(node.output)

    def roots(self, node: Node, states: Sequence[State]) -> frozenset[int]:
        """Returns the roots of a node's result."""
        if self.has_weights(node):
            return frozenset([self.first.get(node.output, node.output)])
        if len(states) == 1 and self._cuts_channels(node, states[0]):
            return frozenset([node.output])
        return frozenset().union(*(s.roots for s in states))

    def check(self, node: Node) -> None:
        """Raises where weights come back in another role.

        Raises:
            NoSoundRule: Then.
        """
        if node.output in self.mixed:
            raise NoSoundRule("weights used before, in another arrangement")

    def graded(self, node: Node, state: State) -> State:
        """Returns a product's result: not exact where its weights are not fresh."""
        if node.output not in self.first:
            return state
        return dataclasses.replace(
            state, grade=Grade(max(state.grade, Grade.APPROXIMATE))
        )

    @staticmethod
    def has_weights(node: Node) -> bool:
        """Whether a node that its rule has taken multiplies by fresh weights."""
        return node.name in primitives.WEIGHT_OPERATIONS or node.name == "gather"

    def _leaves(self, node: Node) -> frozenset[str]:
        if not self.has_weights(node):
            return frozenset()
        flow = self.ctx.traced.flow
        return frozenset().union(*map(flow.leaves_of, node.equations[0].inputs))

    def _use(self, node: Node) -> _Use:
        equation = node.equations[0]
        flow = self.ctx.traced.flow
        side = next(i for i, a in enumerate(equation.inputs) if flow.leaves_of(a))
        at, part, role = equation.inputs[side], "", [node.name, str(side)]
        role.append(str(equation.params.get("dimension_numbers")))
        while isinstance(at, int) and at in self.producers:
            made = self.producers[at]
            if made.name == "slice":
                part = str(made.params) + part
            elif made.name in ("transpose", "rev", "reshape"):
                role.append(str(made.params))
            elif made.name not in primitives.LAYOUT:
                break
            at = made.values_in[0] if made.values_in else -1
        return _Use(part, " ".join(role))

    def _cuts_channels(self, node: Node, state: State) -> bool:
        """Whether a node takes channels of a product that nothing reads as a whole."""
        if node.name not in ("split", "slice") or len(state.roots) != 1:
            return False
        (root,) = state.roots
        if root in self.first.values() or root not in self.uses:
            return False
        p = node.equations[0].params
        if node.name == "split":
            cut = {p["axis"]}
        else:
            shape = self.ctx.shape(node.inputs[0])
            bounds = zip(p["start_indices"], p["limit_indices"], strict=True)
            cut = {a for a, b in enumerate(bounds) if b != (0, shape[a])}
        if not cut or any(state.axes[a] != "c" for a in cut):
            return False
        at = node.inputs[0]
        while at != root:  # every value on the way has one reader, but for the slices
            made = self.producers.get(at)
            if made is None or len(made.values_in) == 0:
                return False
            signals = [v for v in made.values_in if self.ctx.traced.flow.is_signal(v)]
            if len(signals) != 1 or len(self.consumers.get(signals[0], [])) != 1:
                return False
            at = signals[0]
        return self.in_pieces(node.inputs[0])

    def in_pieces(self, value: int) -> bool:
        """Whether a value is only read in pieces, none of which overlap.

        Then its cotangent is that of the pieces side by side, whatever they share.
        """
        readers = self.consumers.get(value, [])
        if [e.name for e in readers] == ["split"]:
            return True
        spans = []
        for e in readers:
            if e.name != "slice":
                return False
            spans.append((e.params["start_indices"][-1], e.params["limit_indices"][-1]))
        spans.sort()
        return all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
