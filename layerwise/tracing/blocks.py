"""Blocks: where a signal is split and comes together again.

A residual block is not a thing that a model declares; it is two facts about its
program. Two signals meet in an equation (a sum, a product, a concatenation), and all
that both are made of passed through one earlier value, the block's *entry*: the
immediate dominator of the equation. Read off like this, a block of ResNet, a dense
block, a highway's gate and a U-Net's long skip differ only in what they meet in and in
what lies on their branches; no layer or block is known by name.

References:
    [He2016] (sums), [Huang2017] (concatenations), [Srivastava2015] (gates).
"""

import dataclasses
from collections.abc import Iterable, Sequence

from layerwise.tracing import primitives
from layerwise.tracing.dataflow import Dataflow
from layerwise.tracing.graph import Equation, Graph
from layerwise.tracing.layers import Layer, Loop, TracedModel


_SUMS = frozenset(["add", "add_any", "sub"])
_JOINS = frozenset(["concatenate", "stack"])
_REARRANGING = primitives.LAYOUT - {"rev"}
_CUTTING = frozenset(["slice", "split", "pad", "concatenate", "dynamic_slice"])
_KINDS = dict.fromkeys(_SUMS, "add") | dict.fromkeys(_JOINS, "concat") | {"mul": "gate"}


@dataclasses.dataclass(frozen=True, eq=False)
class Branch:
    """One of the ways from a block's entry to its exit.

    Attributes:
        end: The value that it hands to the merge.
        layers: The weight operations on it, in program order.
        multipliers: Parameter leaves that the signal on it is multiplied by outside of
            weight operations (a learned scalar, a normalization's scale).
        names: The primitives on it.
    """

    end: int
    layers: tuple[Layer, ...]
    multipliers: tuple[str, ...]
    names: frozenset[str]

    @property
    def identity(self) -> bool:
        """Whether it hands over the entry: the same entries, perhaps laid out anew."""
        return self.names <= _REARRANGING

    @property
    def copies(self) -> bool:
        """Whether it hands over entries of the entry, some left out, zeros put in."""
        return self.names <= _REARRANGING | _CUTTING


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """A place where a signal splits and meets again.

    Attributes:
        kind: "add" (a sum or difference), "concat", or "gate" (a product of two
            signals, or a sum in which every term is one, as in a highway).
        entry: The value that all branches start from.
        exit: The value that they meet in: the sum, product or concatenation.
        branches: In the order of the operands; sums of sums are one block.
        repeats: How often the program runs it: 1 outside of loops.
        source: The user's source line of the merge.
    """

    kind: str
    entry: int
    exit: int
    branches: tuple[Branch, ...]
    repeats: int
    source: str

    @property
    def shortcut(self) -> Branch | None:
        """The branch with the fewest layers, if there is one such branch.

        An identity goes before other branches without layers.
        """
        same = [b for b in self.branches if b.identity]
        if len(same) == 1:
            return same[0]
        fewest = min(len(b.layers) for b in self.branches)
        found = [b for b in self.branches if len(b.layers) == fewest]
        return found[0] if len(found) == 1 else None

    @property
    def identity(self) -> bool:
        """Whether one branch hands the entry over as it is."""
        return any(b.identity for b in self.branches)

    @property
    def residuals(self) -> tuple[Branch, ...]:
        """The branches with layers, the shortcut left out."""
        return tuple(b for b in self.branches if b.layers and b is not self.shortcut)


def blocks(traced: TracedModel) -> tuple[Block, ...]:
    """Returns the blocks of a traced model, those of loops included, by their exits.

    Blocks may hold others: a U-Net's long skips enclose each other, and a gate within a
    branch (squeeze and excitation) is a block of its own. Sums of signals that have no
    value in common (two inputs of a model) are none.

    Args:
        traced: The model.
    """

    def inside(part: TracedModel | Loop, repeats: int) -> list[Block]:
        found = _Finder(part, repeats).blocks()
        for loop in part.loops:
            found += inside(loop, repeats * loop.length)
        return found

    return tuple(sorted(inside(traced, 1), key=lambda b: b.exit))


class _Finder:
    """Finds the blocks of one graph.

    Args:
        part: The model, or a loop of it.
        repeats: How often the graph runs.
    """

    def __init__(self, part: TracedModel | Loop, repeats: int) -> None:
        self.repeats = repeats
        self.graph: Graph = part.graph
        self.flow: Dataflow = part.flow
        self.producers = self.graph.producers()
        self.consumers = self.graph.consumers()
        self.layers: dict[int, tuple[Layer, ...]] = {}
        self.layers.update((y.root, (y,)) for y in part.layers)
        for loop in part.loops:
            held = tuple(sorted(_layers_of(loop), key=lambda y: y.root))
            first = loop.equation.outputs[0]
            self.layers[first] = self.layers.get(first, ()) + held
        self.dominator = self._dominators()
        self.absorbed: set[int] = set()

    def blocks(self) -> list[Block]:
        """Returns the blocks, outer sums before the sums that they are made of."""
        found = []
        merges = [v for v, kind in self.flow.kind.items() if kind == "merge"]
        for value in sorted(merges, reverse=True):
            if value in self.absorbed or value not in self.producers:
                continue
            block = self._block(value)
            if block is not None:
                found.append(block)
        return found

    def _dominators(self) -> dict[int, int]:
        """Returns signal value -> the last value that all of it passed through.

        -1 stands in front of the inputs. Numbers increase along the program, so that
        two values' common dominator is met by stepping the later one back.
        """
        found: dict[int, int] = {}

        def meet(a: int, b: int) -> int:
            while a != b:
                a, b = (a, found[b]) if a < b else (found[a], b)
            return a

        for value in self.graph.inputs:
            if value in self.flow.root:
                found[value] = -1
        for equation in self.graph.equations:
            signals = [v for v in equation.values_in if v in self.flow.root]
            if not signals:
                continue
            joined = signals[0]
            for other in signals[1:]:
                joined = meet(joined, other)
            found.update((v, joined) for v in equation.outputs)
        return found

    def _block(self, exit_: int) -> Block | None:
        equation = self.producers[exit_]
        kind, entry = _KINDS.get(equation.name), self.dominator[exit_]
        if kind is None or entry < 0:
            return None
        branches = tuple(self._branch(entry, v) for v in self._terms(equation, entry))
        if not any(b.layers for b in branches):
            return None
        if kind == "add" and all(b.layers for b in branches):
            products = [self._product(b.end, entry) for b in branches]
            if any(self._has_bare_factor(p, entry) for p in products):
                kind = "gate"
                self.absorbed.update(p for p in products if p is not None)
        summed = self._summed(equation)
        if summed is not None:
            kind, exit_ = "add", summed
        return Block(kind, entry, exit_, branches, self.repeats, equation.source)

    def _summed(self, equation: Equation) -> int | None:
        """Returns the sum over the axis that signals were joined along, if only it is.

        A stack that is summed (or averaged) over its own axis is a sum.
        """
        readers = self.consumers.get(equation.outputs[0], ())
        if equation.name not in _JOINS or len(readers) != 1:
            return None
        axis = equation.params.get("dimension", equation.params.get("axis"))
        total = readers[0]
        over = total.name == "reduce_sum" and axis in total.params["axes"]
        return total.outputs[0] if over else None

    def _terms(self, equation: Equation, entry: int) -> list[int]:
        """Returns what meets: operands, a sum's own terms in place of the sum."""
        terms = []
        for value in equation.values_in:
            if value not in self.flow.root:
                continue
            inner = self._merge_behind(value, entry)
            if inner is not None and _same_family(equation, self.producers[inner]):
                self.absorbed.add(inner)
                terms += self._terms(self.producers[inner], entry)
            else:
                terms.append(value)
        return terms

    def _merge_behind(self, value: int, entry: int) -> int | None:
        """Returns the merge that only `value`'s reader sees, of the same entry."""
        while len(self.consumers.get(value, ())) == 1 and value in self.producers:
            if self.flow.kind.get(value) == "merge":
                return value if self.dominator[value] == entry else None
            if self.producers[value].name not in primitives.LAYOUT:
                return None
            (value,) = self.producers[value].values_in[:1]
        return None

    def _product(self, value: int, entry: int) -> int | None:
        """Returns the product of two signals that a term is, or None."""
        merge = self._merge_behind(value, entry)
        is_product = merge is not None and self.producers[merge].name == "mul"
        return merge if is_product else None

    def _has_bare_factor(self, product: int | None, entry: int) -> bool:
        """Whether what a product scales is the entry, no layer in between."""
        if product is None:
            return False
        factors = self.producers[product].values_in
        return any(not self._branch(entry, v).layers for v in factors)

    def _branch(self, entry: int, end: int) -> Branch:
        equations = self._path(entry, end)
        layers: list[Layer] = []
        multipliers: dict[str, None] = {}
        for equation in equations:
            layers += self.layers.get(equation.outputs[0], ())
            if equation.name in ("mul", "div"):
                leaves = sorted(
                    n for a in equation.inputs for n in self.flow.leaves_of(a)
                )
                multipliers |= dict.fromkeys(leaves)
        names = frozenset(e.name for e in equations)
        return Branch(end, tuple(layers), tuple(multipliers), names)

    def _path(self, entry: int, end: int) -> list[Equation]:
        """Returns the equations between `entry` and `end`, in program order."""
        found: dict[int, Equation] = {}
        stack = [end]
        while stack:
            value = stack.pop()
            if value == entry or value not in self.producers:
                continue
            equation = self.producers[value]
            if equation.outputs[0] in found:
                continue
            found[equation.outputs[0]] = equation
            stack += [v for v in equation.values_in if v in self.flow.root]
        return [found[v] for v in sorted(found)]


def _same_family(a: Equation, b: Equation) -> bool:
    return {a.name, b.name} <= _SUMS or a.name == b.name == "concatenate"


def _layers_of(part: Loop) -> Iterable[Layer]:
    return [*part.layers, *(y for loop in part.loops for y in _layers_of(loop))]


def residual_blocks(found: Sequence[Block]) -> tuple[Block, ...]:
    """Returns the sums with a shortcut: a residual network's blocks, in any form."""
    return tuple(
        b for b in found if b.kind == "add" and b.shortcut is not None and b.residuals
    )
