"""Finds attention: two products of random signals, one inside the other.

Scores are a product of queries and keys, and their softmax is multiplied by values.
Whatever is done on the way (scale, mask, rotation of positions, normalization of
queries, grouped heads, a softmax or something else in its place), the equations from
the projections to the second product are one function of signals that are normal,
with channels independent of each other. Such a block is found by its two products, and
by nothing that it is called; `layerwise.theory.simulation` evaluates it.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable

import numpy as np

from layerwise.tracing.dataflow import Dataflow
from layerwise.tracing.graph import Equation, Graph, needed_for


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """Equations that are one function of several random signals.

    Attributes:
        graph: The program that they are part of.
        inputs: The signals that it is a function of.
        outside: What else it reads: masks, constants.
        equations: In order.
        output: The value that it is for.
        reported: Values between whose moments are wanted too.
        inside: Whether it is only for a value inside of another block.
    """

    graph: Graph
    inputs: tuple[int, ...]
    outside: tuple[int, ...]
    equations: tuple[Equation, ...]
    output: int
    reported: tuple[int, ...] = ()
    inside: bool = False

    def up_to(self, value: int) -> "Block":
        """Returns the block that makes one of the values between."""
        kept = needed_for(self.equations, (value,))
        read = {v for e in kept for v in e.values_in}
        return dataclasses.replace(
            self,
            inputs=tuple(v for v in self.inputs if v in read),
            outside=tuple(v for v in self.outside if v in read),
            equations=kept,
            output=value,
            reported=(),
            inside=True,
        )

    @functools.cached_property
    def text(self) -> str:
        """What the block does, the same for equal blocks."""
        place = {v: i for i, v in enumerate((*self.inputs, *self.outside))}
        lines = []
        for e in self.equations:
            place.update((v, len(place)) for v in e.outputs if v not in place)
            read = [place[a] if isinstance(a, int) else repr(a.val) for a in e.inputs]
            made = [place[v] for v in e.outputs]
            lines.append(f"{made} = {e.name} {e.eqn.params} {read}")
        read_in = [self.graph.avals[v] for v in self.inputs]
        avals = [(str(a.dtype), a.shape) for a in read_in]
        reported = [place[v] for v in self.reported]
        return "\n".join([str(avals), *lines, str(reported), str(place[self.output])])


_AFFINE = frozenset(["add", "sub", "mul", "div", "neg", "convert_element_type"])


class Finder:
    """Finds the blocks of a program.

    Args:
        graph: The program.
        flow: Its roles.
        deterministic: Values that no weight has touched.
        constant: Parameter-made value -> its array where it is the same in every
            network, else None.
        is_scalar: Whether an equation is elementwise, what else it reads being uniform.
    """

    def __init__(
        self,
        graph: Graph,
        flow: Dataflow,
        deterministic: frozenset[int],
        constant: Callable[[int], np.ndarray | None],
        is_scalar: Callable[[Equation], bool],
    ):
        self.graph, self.flow = graph, flow
        self.deterministic, self.constant = deterministic, constant
        self.is_scalar = is_scalar
        self.producers, self.consumers = graph.producers(), graph.consumers()

    def find(self, cuts: Iterable[int]) -> list[Block]:
        """Returns the blocks, none inside another; `cuts` are the values wanted."""
        found: list[Block] = []
        inside: set[int] = set()
        for equation in reversed(self.graph.equations):
            output = equation.outputs[0] if equation.outputs else -1
            if output in inside or not self._multiplies(equation):
                continue
            block = self._block(output, frozenset(cuts))
            if block is not None:
                found.append(block)
                inside.update(v for e in block.equations for v in e.outputs)
        return found[::-1]

    def _is_random(self, value: int) -> bool:
        return value in self.flow.root and value not in self.deterministic

    def _multiplies(self, equation: Equation) -> bool:
        """Whether an equation is a product of two random signals."""
        return equation.name == "dot_general" and all(
            isinstance(a, int) and self._is_random(a) for a in equation.inputs
        )

    def _begins(self, value: int) -> bool:
        """Whether a signal is taken as it is, and not for a function of others."""
        equation = self.producers.get(value)
        kind = self.flow.kind.get(value)
        if equation is None or equation.bodies or kind in ("weight", "lookup", "loop"):
            return True
        if kind == "merge" and equation.name != "dot_general":
            return True
        others = [v for v in equation.values_in if v not in self.flow.root]
        return any(self.flow.leaves_of(v) and self.constant(v) is None for v in others)

    def _block(self, output: int, cuts: frozenset[int]) -> Block | None:
        inputs: set[int] = set()
        equations: dict[int, Equation] = {}
        stack = [self.producers[output]]
        while stack:
            equation = stack.pop()
            if equations.setdefault(equation.outputs[0], equation) is not equation:
                continue
            for v in filter(self._is_random, equation.values_in):
                if self._begins(v):
                    inputs.add(v)
                elif self.producers[v].outputs[0] not in equations:
                    stack.append(self.producers[v])
        if sum(map(self._multiplies, equations.values())) < 2:
            return None
        for v in sorted(inputs):
            self._advance(v, inputs, equations)
        return self._closed(inputs, equations, output, cuts)

    def _advance(
        self, value: int, inputs: set[int], equations: dict[int, Equation]
    ) -> None:
        """Leaves affine functions of a signal alone to the rules of their own."""
        while True:
            readers = [e for e in equations.values() if value in e.values_in]
            if len(readers) != 1:
                return
            (reader,) = readers
            affine = reader.name in _AFFINE and reader.inputs.count(value) == 1
            if not affine or not self.is_scalar(reader):
                return
            signals = [v for v in reader.values_in if v in self.flow.root]
            if len(signals) != 1 or (
                reader.name == "div" and reader.inputs[0] != value
            ):
                return
            del equations[reader.outputs[0]]
            inputs.remove(value)
            value = reader.outputs[0]
            inputs.add(value)

    def _closed(
        self,
        inputs: set[int],
        equations: dict[int, Equation],
        output: int,
        cuts: frozenset[int],
    ) -> Block | None:
        """Returns the block, unless values inside of it are read outside."""
        mine = tuple(equations[k] for k in sorted(equations))
        made = {v for e in mine for v in e.outputs}
        read = {v for e in mine for v in e.values_in}
        ids = {id(e) for e in mine}
        for v in made - {output}:
            readers = self.consumers.get(v, [])
            if v in self.graph.outputs or any(id(e) not in ids for e in readers):
                return None
        return Block(
            self.graph,
            tuple(sorted(inputs)),
            tuple(sorted(read - made - inputs)),
            mine,
            output,
            tuple(sorted((made & cuts) - {output})),
        )
