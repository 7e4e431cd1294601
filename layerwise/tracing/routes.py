"""In how many ways a signal gets from the input to the output.

Where signals meet in a sum, a concatenation or a maximum, each is a way of its own; a
product needs all of its factors, and so is no choice between ways. A residual network
of n blocks then has 2^n paths [Veit2016].
"""

from collections.abc import Mapping, Sequence

from layerwise.tracing.dataflow import Dataflow, analyze_body, body_operands
from layerwise.tracing.graph import Equation, Graph
from layerwise.tracing.layers import TracedModel


_PRODUCTS = frozenset(["mul", "div", "dot_general", "conv_general_dilated", "pow"])


def count_paths(traced: TracedModel) -> int:
    """Returns the number of paths from the inputs to the outputs.

    Exact for what the program does (an integer of any size). Loops count as often as
    they run; of a `cond`, the branch with the most; a `while`, once.

    Args:
        traced: A traced model.
    """
    graph = traced.graph
    ways = [1 if v in traced.input_values else 0 for v in graph.inputs]
    return sum(_outputs(graph, traced.flow, ways))


def _outputs(graph: Graph, flow: Dataflow, ways: Sequence[int]) -> list[int]:
    """Returns the paths that end in each output of a graph, given those that enter."""
    at = dict(zip(graph.inputs, ways, strict=True))
    for equation in graph.equations:
        signals = [v for v in equation.values_in if flow.is_signal(v)]
        if not signals:
            continue
        if equation.bodies:
            at.update(zip(equation.outputs, _through(equation, flow, at), strict=True))
        else:
            at.update(dict.fromkeys(equation.outputs, _met(equation, graph, flow, at)))
    return [at.get(a, 0) if isinstance(a, int) else 0 for a in graph.outputs]


def _met(
    equation: Equation, graph: Graph, flow: Dataflow, at: Mapping[int, int]
) -> int:
    by_root: dict[int, int] = {}
    for v in equation.values_in:
        if flow.is_signal(v) and _is_number(graph, v):
            by_root[flow.root[v]] = max(by_root.get(flow.root[v], 0), at[v])
    merges = flow.kind.get(equation.outputs[0]) == "merge"
    if merges and equation.name not in _PRODUCTS:
        return sum(by_root.values())
    return max(by_root.values(), default=0)


def _is_number(graph: Graph, value: int) -> bool:
    """Whether a value carries a signal: neither a mask nor an index made of one."""
    return value in graph.inputs or graph.avals[value].dtype.kind not in "biu"


def _through(equation: Equation, flow: Dataflow, at: Mapping[int, int]) -> list[int]:
    """Returns the paths that end in each output of a loop or of a cond."""
    operands, constants, carries = body_operands(equation)
    entering = [at.get(a, 0) if isinstance(a, int) else 0 for a in operands]
    ends: list[list[int]] = []
    for number in range(len(equation.bodies)):
        if equation.name == "while" and number == 0:  # its condition
            continue
        body, ways = equation.bodies[number], list(entering)
        inner = analyze_body(equation, number, flow)
        outs: list[int] = []
        for _ in range(equation.params.get("length", 1)):
            outs = _outputs(body, inner, ways)
            ways[constants : constants + carries] = outs[:carries]
        ends.append(outs)
    return [max(values) for values in zip(*ends, strict=True)]
