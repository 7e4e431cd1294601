"""What is signal, what is parameter, and where signals meet.

Every value of a graph is either *signal* (it depends on the data inputs) or not, in
which case it is made of parameter leaves and constants. Every signal value has one
*root*: the operation whose output it is a rearrangement or function of. Roots are the
data inputs, the weight operations, and the *merges*, equations in which signals with
different roots meet (a residual sum, a gate, a concatenation, attention scores).

Nothing is recognized by pattern: GELU's eight nameless equations, a softmax, a
normalization all have one root and so belong to the operation before them, while
``x + f(x)`` has two and is a merge.
"""

import bisect
import dataclasses
import functools
import math
import sys
from collections.abc import Mapping, Sequence

import numpy as np

from layerwise import _jax
from layerwise.tracing import primitives
from layerwise.tracing.graph import Atom, Equation, Graph, evaluate, needed_for


@dataclasses.dataclass(frozen=True)
class Dataflow:
    """The roles of a graph's values.

    Attributes:
        root: Signal value -> its root. A value that is its own root starts a region.
        leaves: Other value -> the names of the parameter leaves it is made of.
        kind: Root -> "input", "weight", "lookup", "loop" or "merge".
    """

    root: Mapping[int, int]
    leaves: Mapping[int, frozenset[str]]
    kind: Mapping[int, str]

    def is_signal(self, atom: Atom) -> bool:
        """Whether an operand depends on the data inputs."""
        return isinstance(atom, int) and atom in self.root

    @functools.cached_property
    def regions(self) -> Mapping[int, Sequence[int]]:
        """Root -> the values that have it, in program order."""
        found: dict[int, list[int]] = {}
        for v, r in self.root.items():
            found.setdefault(r, []).append(v)
        return {r: sorted(vs) for r, vs in found.items()}

    def leaves_of(self, atom: Atom) -> frozenset[str]:
        """The parameter leaves in an operand; empty for signals and constants."""
        return self.leaves.get(atom, frozenset()) if isinstance(atom, int) else _NONE


_NONE: frozenset[str] = frozenset()


def analyze(
    graph: Graph, signals: Sequence[int], given: Mapping[int, frozenset[str]]
) -> Dataflow:
    """Finds the role of every value of `graph`.

    Args:
        graph: The program.
        signals: Those of its inputs that are data.
        given: The other inputs, with the parameter leaves that they are made of.
    """
    root: dict[int, int] = {v: v for v in signals}
    kind: dict[int, str] = dict.fromkeys(signals, "input")
    leaves: dict[int, frozenset[str]] = dict(given)

    for equation in graph.equations:
        roots = {root[v] for v in equation.values_in if v in root}
        made_of = frozenset().union(
            *(leaves.get(v, _NONE) for v in equation.values_in if v not in root)
        )
        if not roots:
            leaves.update((v, made_of) for v in equation.outputs)
            continue
        role = _role(equation, len(roots), made_of)
        if role is None:
            (only,) = roots
            root.update((v, only) for v in equation.outputs)
        else:
            for v in equation.outputs:
                root[v] = v
                kind[v] = role
    return Dataflow(root, leaves, kind)


def body_operands(equation: Equation) -> tuple[tuple[Atom, ...], int, int]:
    """Returns what the body of a loop, or each branch of a cond, is given.

    Returns:
        The operands, in the order of the body's inputs; how many of them are constants;
        and how many after those are carried from one iteration to the next.
    """
    operands = equation.inputs
    match equation.name:
        case "scan":
            return operands, *_jax.scan_counts(equation.eqn)
        case "while":
            tested, constant = _jax.while_counts(equation.eqn)
            rest = operands[tested:]
            return rest, constant, len(rest) - constant
    return operands[1:], len(operands) - 1, 0


def analyze_body(equation: Equation, number: int, outer: Dataflow) -> Dataflow:
    """Finds the roles of the values in a body of a loop or a cond.

    A carry is a signal if it enters as one or becomes one; it is made of the leaves
    that it enters with.

    Args:
        equation: The loop or cond.
        number: Which of its bodies.
        outer: The roles of its operands.
    """
    body = equation.bodies[number]
    operands, first, carries = body_operands(equation)
    pairs = list(zip(body.inputs, operands, strict=True))
    signals = {v for v, atom in pairs if outer.is_signal(atom)}
    while True:
        given = {v: outer.leaves_of(a) for v, a in pairs if v not in signals}
        flow = analyze(body, [v for v in body.inputs if v in signals], given)
        become = {
            v
            for v, out in zip(
                body.inputs[first : first + carries], body.outputs, strict=False
            )
            if flow.is_signal(out)
        }
        if become <= signals:
            return flow
        signals |= become


def _role(equation: Equation, n_roots: int, leaves: frozenset[str]) -> str | None:
    """Returns what kind of root an equation starts, or None if it passes roots on."""
    if leaves and equation.name in primitives.WEIGHT_OPERATIONS:
        return "weight"
    if leaves and equation.name in primitives.LOOKUPS:
        return "lookup"
    if leaves and equation.bodies:
        return "loop"
    return "merge" if n_roots > 1 else None


def constant_value(graph: Graph, value: int, flow: Dataflow) -> np.ndarray | None:
    """Returns the array of a value made of constants only, else None.

    Values larger than 2**22 entries are not computed.
    """
    if flow.is_signal(value) or flow.leaves_of(value):
        return None
    if value in graph.inputs or math.prod(graph.avals[value].shape) > 2**22:
        return None
    kept = needed_for(graph.equations, (value,))
    if any(not set(graph.inputs).isdisjoint(e.values_in) for e in kept):
        return None
    part = dataclasses.replace(graph, inputs=(), equations=kept, outputs=(value,))
    return np.asarray(evaluate(part, ())[0])


def dominators(graph: Graph, flow: Dataflow, start: int) -> list[int]:
    """Returns the values through which all that flows out of `start` passes.

    The chain begins with `start` and stays within its region (the values with the same
    root); it is the chain of immediate post-dominators of the region's graph, whose
    exits are merges, weight operations and the program's outputs.
    """
    exit_ = sys.maxsize
    whole = flow.regions[flow.root[start]]
    region = whole[bisect.bisect_left(whole, start) :]
    members = set(region)
    consumers = graph.consumers()
    outputs = {a for a in graph.outputs if isinstance(a, int)}
    after: dict[int, int] = {}

    def meet(a: int, b: int) -> int:
        while a != b:  # numbers increase along the program, so step the earlier one
            if a < b:
                a = after.get(a, exit_)
            else:
                b = after.get(b, exit_)
        return a

    for value in reversed(region):
        nexts: list[int] = [exit_] if value in outputs else []
        for equation in consumers.get(value, ()):
            nexts += [w if w in members else exit_ for w in equation.outputs]
        joined = nexts[0] if nexts else exit_
        for other in nexts[1:]:
            joined = meet(joined, other)
        after[value] = joined

    chain: list[int] = []
    at = start
    while at != exit_:
        chain.append(at)
        at = after.get(at, exit_)
    return chain


def between(graph: Graph, flow: Dataflow, first: int, last: int) -> list[Equation]:
    """Returns the equations by which `first` becomes its post-dominator `last`."""
    whole, producers = flow.regions[flow.root[first]], graph.producers()
    lo, hi = bisect.bisect_right(whole, first), bisect.bisect_right(whole, last)
    reached, found, seen = {first}, [], set()
    for value in whole[lo:hi]:
        equation = producers[value]
        if equation.outputs[0] not in seen and not reached.isdisjoint(
            equation.values_in
        ):
            seen.add(equation.outputs[0])
            reached.update(v for v in equation.outputs if v <= last)
            found.append(equation)
    return found
