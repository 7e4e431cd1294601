"""What one evaluation of a model costs, counted off its program."""

import math

from layerwise.tracing.graph import Atom, Equation, Graph
from layerwise.tracing.layers import TracedModel


def flops(traced: TracedModel) -> int:
    """Returns the floating-point operations of all products in one forward pass.

    A multiplication and an addition count as two. Matrix products and convolutions are
    counted, of weights and of signals (attention scores), in loops as often as they
    run (a `while` once, of a `cond` the dearest branch); what is done entry by entry is
    not. Taps that meet padding are counted: the hardware multiplies them.

    Args:
        traced: A traced model; the count is for the whole of its batch.
    """
    return _of(traced.graph)


def layer_flops(traced: TracedModel) -> dict[int, int]:
    """Returns the root of every layer -> its operations, in one run of its graph."""
    graphs = [traced.graph, *(g for loop in traced.loops for g in loop.graphs())]
    producers = {v: (e, g) for g in graphs for v, e in g.producers().items()}
    roots = [y.root for y in traced.all_layers()]
    return {r: _product(*producers[r]) for r in roots if r in producers}


def _of(graph: Graph) -> int:
    return sum(_cost(equation, graph) for equation in graph.equations)


def _cost(equation: Equation, graph: Graph) -> int:
    inner = [_of(body) for body in equation.bodies]
    if equation.name == "cond":
        return max(inner)
    return _product(equation, graph) + sum(inner) * equation.params.get("length", 1)


def _product(equation: Equation, graph: Graph) -> int:
    if equation.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        lhs = _shape(equation.inputs[0], graph)
        terms = math.prod(lhs[a] for a in contracted)
    elif equation.name == "conv_general_dilated":
        spec = equation.params["dimension_numbers"].rhs_spec
        rhs = _shape(equation.inputs[1], graph)
        terms = math.prod(rhs) // max(rhs[spec[0]], 1)
    else:
        return 0
    return 2 * terms * math.prod(graph.avals[equation.outputs[0]].shape)


def _shape(atom: Atom, graph: Graph) -> tuple[int, ...]:
    return graph.avals[atom].shape if isinstance(atom, int) else atom.val.shape
