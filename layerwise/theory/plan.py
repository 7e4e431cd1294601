"""From equations to the interpreter's nodes.

Between two values through which everything passes there is one function. Where it is a
function of one number (an activation, however many equations it takes) it becomes a
"pointwise" node; where it is a normalization, recognized by evaluating it and not by
how it is written, a "normalization" node; where it is made of products of
signals, one inside another, an "attention" node; where it is one equation, a node of
that primitive's name; and otherwise "opaque", without a rule, and sampled.
"""

import bisect
import functools
import heapq
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from layerwise.theory import registry
from layerwise.theory.attention import Block, Finder
from layerwise.theory.context import Node
from layerwise.theory.normalization import Normalization, recognize
from layerwise.tracing import TracedModel, primitives
from layerwise.tracing.graph import Equation
from layerwise.tracing.pointwise import ScalarFunction, scalar_function


_NEUTRAL = frozenset(["convert_element_type", "copy", "copy_p", "reduce_precision"])


class Planner:
    """Makes the nodes of a traced model.

    Args:
        traced: The model.
        cuts: Values that must be a node's result (the named sites).
        deterministic: Values that no weight has touched.
        constant: Parameter-made value -> its array where it is the same in every
            network, else None.
    """

    def __init__(
        self,
        traced: TracedModel,
        cuts: frozenset[int],
        deterministic: frozenset[int],
        constant: Callable[[int], np.ndarray | None],
    ):
        self.traced, self.graph, self.flow = traced, traced.graph, traced.flow
        self.deterministic = deterministic
        self.constant = constant
        self.producers = self.graph.producers()
        self.nodes: dict[int, Node] = {}
        self.functions: dict[str, ScalarFunction] = {}
        self.shared: dict[ScalarFunction, ScalarFunction] = {}
        self.scalar: dict[Equation, bool] = {}
        finder = Finder(self.graph, self.flow, deterministic, constant, self._is_scalar)
        self.exits = self._exits(cuts)
        for block in finder.find(cuts):
            self._block(block)

    def _block(self, block: Block) -> None:
        """Makes the nodes of an attention: its result, and what is wanted inside."""
        reported = {}
        for v in block.reported:
            made = (self.producers[v],)
            inner = block.up_to(v)
            reported[v] = Node("attention", inner.inputs, v, made, inner)
        rest = tuple(e for e in block.equations if e.outputs[0] not in reported)
        inputs = (*block.inputs, *block.reported)
        self.nodes |= reported
        self.nodes[block.output] = Node("attention", inputs, block.output, rest, block)
        self.exits -= {v for e in block.equations for v in e.outputs}
        self.exits |= {*block.inputs, block.output}

    def plan(self) -> tuple[Node, ...]:
        """Returns the nodes, in program order."""
        wanted = sorted(self.exits)
        for value in wanted:
            if value not in self.deterministic:
                self._reach(value)
        return tuple(self.nodes[v] for v in sorted(self.nodes))

    def _exits(self, cuts: frozenset[int]) -> set[int]:
        """Values read by weight operations, merges and loops, outputs, and sites."""
        found = {v for v in cuts if v in self.flow.root}
        found |= {a for a in self.graph.outputs if self.flow.is_signal(a)}  # type: ignore[misc]
        for equation in self.graph.equations:
            out = equation.outputs[0] if equation.outputs else -1
            if self.flow.root.get(out) == out or equation.bodies:
                found |= {v for v in equation.values_in if v in self.flow.root}
                found.add(out)
        floating = {v for v in found if v in self.graph.avals}
        return {v for v in floating if v in self.flow.root}

    def _reach(self, value: int) -> None:
        """Makes the nodes by which `value` comes from its root."""
        if value in self.nodes or value in self.deterministic:
            return
        root = self.flow.root[value]
        if value == root:
            self._root_node(value)
            return
        chain, between = self._chain(root, value)
        at = 0
        while at < len(chain) - 1:
            if chain[at + 1] in self.deterministic:
                at += 1
                continue
            end = self._normalized(chain, between, at)
            end = end or self._longest(chain, between, at)
            if chain[end] not in self.nodes:
                equations = [e for group in between[at:end] for e in group]
                self._segment(chain[at], chain[end], equations)
            at = end

    def _root_node(self, value: int) -> None:
        equation = self.producers.get(value)
        if equation is None:
            return
        signals = tuple(v for v in equation.values_in if v in self.flow.root)
        name = self._name(equation)
        if len(equation.outputs) > 1 or equation.bodies:
            name = "opaque"
        for v in equation.outputs:
            self.nodes[v] = Node(name, signals, v, (equation,))

    def _name(self, equation: Equation) -> str:
        """The primitive's name; a product with an array that is fixed has its own."""
        if equation.name not in ("dot_general", "gather"):
            return equation.name
        others = [v for v in equation.values_in if v not in self.flow.root]
        fixed = len(others) == 1 and self.constant(others[0]) is not None
        return "fixed_product" if fixed else equation.name

    def _chain(self, root: int, value: int) -> tuple[list[int], list[list[Equation]]]:
        """Returns the values on every path from root to value, and what is between."""
        only = self.producers[value]
        if all(v == root or self.flow.root.get(v) != root for v in only.values_in):
            return [root, value], [[only]]
        needed, equations = {value}, []
        edges: list[tuple[int, int]] = []
        queue, seen = [-value], set()
        while queue:
            at = -heapq.heappop(queue)
            equation = self.producers[at]
            if id(equation) in seen:
                continue
            seen.add(id(equation))
            equations.append(equation)
            for v in equation.values_in:
                if self.flow.root.get(v) == root:
                    edges += [(v, w) for w in equation.outputs if w in needed]
                    if v != root and v not in needed:
                        heapq.heappush(queue, -v)
                    needed.add(v)
        equations.reverse()
        jumped = set()
        candidates = sorted(v for v in needed if root <= v <= value)
        for a, b in edges:
            behind = bisect.bisect_right(candidates, a)
            jumped.update(candidates[behind : bisect.bisect_left(candidates, b)])
        chain = [v for v in candidates if v not in jumped]
        between: list[list[Equation]] = [[] for _ in chain[1:]]
        for equation in equations:
            last = max(v for v in equation.outputs if v in needed)
            between[bisect.bisect_left(chain, last) - 1].append(equation)
        return chain, between

    def _normalized(
        self, chain: Sequence[int], between: Sequence[list[Equation]], at: int
    ) -> int | None:
        """Returns the end of a normalization that goes on behind its centred value.

        Everything passes through `c = x - mean(x)` on the way to `c / sqrt(mean(c^2))`.
        """
        if not any(e.name == "reduce_sum" for e in between[at]):
            return None
        found = None
        for end in range(at + 2, len(chain)):
            if chain[end - 1] in self.exits or chain[end - 1] in self.nodes:
                break
            made = [e for group in between[at:end] for e in group]
            signals = [e for e in made if any(v in self.flow.root for v in e.outputs)]
            a, b = chain[at], chain[end]
            if not recognize(self.traced, a, b, signals, self.constant):
                break
            found = end
        return found

    def _longest(
        self, chain: Sequence[int], between: Sequence[list[Equation]], at: int
    ) -> int:
        """Returns the end of the longest elementwise run from `at`, at least one on."""
        end = at
        while end < len(chain) - 1:
            if not all(self._is_scalar(e) for e in between[end]):
                break
            end += 1
            if chain[end] in self.exits or chain[end] in self.nodes:
                break
        return max(end, at + 1)

    def _is_scalar(self, equation: Equation) -> bool:
        """Whether an equation is one scalar function of every entry; asked often."""
        if equation not in self.scalar:
            self.scalar[equation] = self._reads_scalars(equation)
        return self.scalar[equation]

    def _reads_scalars(self, equation: Equation) -> bool:
        if equation.name in primitives.LAYOUT and equation.name not in _NEUTRAL:
            return not any(v in self.flow.root for v in equation.values_in)
        if equation.name not in (
            primitives.ELEMENTWISE | primitives.WRAPPERS | _NEUTRAL
        ):
            return False
        return all(v in self.flow.root or self._uniform(v) for v in equation.values_in)

    def _is_real(self, value: int) -> bool:
        return jnp.issubdtype(self.graph.avals[value].dtype, jnp.floating)

    def _uniform(self, value: int) -> bool:
        array = self.constant(value)
        return (
            array is not None
            and array.size > 0
            and bool(np.all(array == array.flat[0]))
        )

    def _segment(self, a: int, b: int, equations: list[Equation]) -> None:
        signals = [e for e in equations if any(v in self.flow.root for v in e.outputs)]
        make = functools.partial(Node, inputs=(a,), output=b, equations=tuple(signals))
        if not all(self._is_real(v) for v in (a, b)):
            self.nodes[b] = make("opaque")
            return
        if all(self._is_scalar(e) for e in signals):
            phi = scalar_function(signals, a, b, self.constant)
            if phi is not None:
                self.nodes[b] = make("pointwise", data=self._shared(phi))
                return
        if len(signals) == 1:
            self.nodes[b] = make(self._name(signals[0]))
            return
        found: Normalization | None = recognize(
            self.traced, a, b, signals, self.constant
        )
        if found is not None:
            self.nodes[b] = make("normalization", data=found)
            return
        if self._piecewise(signals):
            return
        self.nodes[b] = make("opaque")

    def _piecewise(self, equations: list[Equation]) -> bool:
        """Makes a node of each equation, where channels are cut into pieces.

        The pieces of one product are independent of each other, so that what is made of
        several (a gated unit) is no function of one signal.
        """
        if not any(e.name in ("split", "slice") for e in equations):
            return False
        made: dict[int, Node] = {}
        for e in equations:
            inputs = tuple(v for v in dict.fromkeys(e.values_in) if v in self.flow.root)
            phi = None
            if len(inputs) == 1 and self._is_scalar(e):
                phi = scalar_function([e], inputs[0], e.outputs[0], self.constant)
            if phi is None and registry.find(e.name) is None:
                return False
            for v in e.outputs:
                node = Node(e.name, inputs, v, (e,))
                if phi is not None:
                    shared = self._shared(phi)
                    node = Node("pointwise", inputs, v, (e,), shared)
                made[v] = node
        self.nodes.update(made)
        return True

    def _shared(self, phi: ScalarFunction) -> ScalarFunction:
        """One function object for equal functions, so that one cache serves all."""
        if phi not in self.shared:
            key = str(jax.make_jaxpr(phi)(jax.ShapeDtypeStruct((), jnp.float32)))
            self.shared[phi] = self.functions.setdefault(key, phi)
        return self.shared[phi]
