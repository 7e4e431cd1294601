"""A traced model as a graph of affine maps, activations, merges and max pools.

The program of the model, its parameters filled in, is read equation by equation. What
is affine in the signal becomes an `Affine` node that runs the original primitive; runs
of elementwise equations with one source become one activation, with its exact table
where it is piecewise linear (no activation is known by name: leaky ReLU is a
comparison, a product and a selection); maxima over windows become `MaxPool`; sums,
products and maxima of two signals become joins. Anything else is an error that names
the equation.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from layerwise import _jax
from layerwise.errors import (
    InputError,
    LayerwiseError,
    UnsupportedModelError,
    message,
)
from layerwise.expressivity import graph as g, linear_maps
from layerwise.expressivity.scalars import Scalar, apply_scalar
from layerwise.tracing import as_function
from layerwise.tracing.graph import Equation, Graph, from_jaxpr
from layerwise.tracing.model import abstract_params, call_error, complete
from layerwise.types import PyTree


# Affine in every operand that is a signal, whatever the others are.
_AFFINE = frozenset(
    [
        "broadcast_in_dim",
        "concatenate",
        "convert_element_type",
        "copy",
        "copy_p",
        "cumsum",
        "expand_dims",
        "optimization_barrier",
        "pad",
        "reduce_precision",
        "reduce_sum",
        "reduce_window_sum",
        "reshape",
        "rev",
        "slice",
        "squeeze",
        "stack",
        "stop_gradient",
        "transpose",
        "split",
    ]
)
# Of these, the ones that may add something of their own: a padding value, a constant
# part of a concatenation.
_BIASED = frozenset(["concatenate", "pad", "select_n", "stack"])
# Affine in the named operand, if the others are constant.
_AFFINE_IN = {
    "conv_general_dilated": (0, 1),
    "dot_general": (0, 1),
    "mul": (0, 1),
    "div": (0,),
    "gather": (0,),
    "dynamic_slice": (0,),
}
_MERGES = frozenset(["add", "add_any", "div", "max", "min", "mul", "sub"])
_INLINED = frozenset(["custom_jvp_call", "custom_vjp_call", "remat"])


class _Signal:
    """A value that depends on the input.

    Attributes:
        node: It in the graph; None for a boolean, which only selections read.
        views: Source node -> it as a scalar function of that source, oldest first.
    """

    def __init__(self, node: g.Node | None, views: Mapping[g.Node, Scalar]):
        self.node = node
        self.views = dict(views)
        if node is not None:
            self.views.setdefault(node, Scalar.identity())


def net_of(
    model: Any,
    inputs: Any,
    *,
    params: PyTree = None,
    key: jax.Array | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> g.Net:
    """Returns a model as a graph, at the shape of `inputs`.

    Args:
        model: A Linen or NNX module, or a function ``apply(params, x)``. Normalization
            must be in evaluation mode.
        inputs: One array, batch axis first. For regions use a batch of one.
        params: The parameters (or all variables) of a Linen module or function; drawn
            with ``model.init`` if None. An NNX module holds its own.
        key: For that draw; ``jax.random.key(0)`` if None.
        kwargs: Keyword arguments of the model's call.

    Returns:
        A network from `inputs.shape` to the shape of the model's output. Its linear
        maps run the model's own primitives; their matrices are those of its parameters.

    Raises:
        InputError: If there are several inputs, integers, or a shape that the model
            does not take.
        UnsupportedModelError: If an equation is none of affine, elementwise, a maximum
            over windows, or a merge; the message names it.
    """
    return traced(model, inputs, params=params, key=key, kwargs=kwargs)[0]


def traced(
    model: Any,
    inputs: Any,
    *,
    params: PyTree,
    key: jax.Array | None,
    kwargs: Mapping[str, Any] | None,
) -> tuple[g.Net, Callable[[jax.Array], jax.Array]]:
    """Returns the graph, and the model itself as a function of its input alone."""
    function = as_function(model, kwargs=kwargs)
    arrays = (_one_array(inputs),)
    if params is None and function.params is None and function.init is not None:
        abstract_params(function, arrays)  # says why, if init cannot be called
        draw = jax.random.key(0) if key is None else key
        params = jax.jit(function.init)(draw, *arrays)
    variables = complete(function, params)
    run = functools.partial(function.apply, variables)
    try:
        program = from_jaxpr(jax.make_jaxpr(run)(arrays[0]))
    except LayerwiseError:
        raise
    except Exception as error:  # the model's own code objects to this input
        raise call_error(function, arrays, error) from error
    source = g.Input(tuple(arrays[0].shape))
    outputs = _translate(program, [_Signal(source, {})])
    if len(outputs) != 1 or not isinstance(outputs[0], _Signal):
        raise UnsupportedModelError(
            message(
                f"{function.name} returns {len(outputs)} values, or a constant.",
                "A network here is one array-valued function of its input.",
                "Wrap it in a function that returns the output of interest.",
            )
        )
    node = outputs[0].node
    assert node is not None
    return g.Net(source, node), run


def _one_array(inputs: Any) -> jax.Array:
    many = inputs if isinstance(inputs, tuple | list) else (inputs,)
    if len(many) != 1:
        raise InputError(
            message(
                f"{len(many)} inputs.",
                "A network's regions and its form are of one input space.",
                "Close over the others: model = lambda params, x: apply(params, x, y).",
            )
        )
    kind = np.asarray(many[0]).dtype
    if not jnp.issubdtype(kind, jnp.floating):
        raise InputError(
            message(
                f"An input of type {type(many[0]).__name__} ({kind}).",
                "Affine maps and linear regions are of real numbers.",
                "Pass a floating-point array, batch axis first.",
            )
        )
    return jnp.asarray(many[0])


def _translate(program: Graph, args: Sequence[Any]) -> list[Any]:
    """Returns a graph's outputs, constants as arrays and signals as `_Signal`."""
    env: dict[int, Any] = dict(program.constants)
    env.update(zip(program.inputs, args, strict=True))

    def read(atom: Any) -> Any:
        return env[atom] if isinstance(atom, int) else atom.val

    for equation in program.equations:
        operands = [read(a) for a in equation.inputs]
        outs = _equation(equation, operands)
        env.update(zip(equation.outputs, outs, strict=True))
    return [read(a) for a in program.outputs]


def _equation(equation: Equation, operands: list[Any]) -> list[Any]:
    signals = [i for i, x in enumerate(operands) if isinstance(x, _Signal)]
    name = equation.name
    if not signals:
        return _jax.bind(equation.eqn, operands)
    if name in _INLINED:
        return _translate(_body(equation), operands)
    elementwise = apply_scalar(equation, [_views(x) for x in operands])
    if elementwise is not None and not elementwise.is_affine_step:
        return [_pointwise(equation, elementwise.views)]
    views = {} if elementwise is None else elementwise.views
    node = _structural(equation, operands, signals)
    if isinstance(node, list):
        return [_Signal(n, {}) for n in node]
    return [_Signal(node, views)]


def _body(equation: Equation) -> Graph:
    if equation.bodies:
        return equation.bodies[0]
    return from_jaxpr(_jax.sub_jaxprs(equation.eqn)[0])


def _views(operand: Any) -> Any:
    return operand.views if isinstance(operand, _Signal) else operand


def _pointwise(equation: Equation, views: Mapping[g.Node, Scalar]) -> _Signal:
    """The value as an activation of its nearest common source."""
    if not np.issubdtype(_aval(equation).dtype, np.floating):
        return _Signal(None, views)
    source, scalar = list(views.items())[-1]
    return _Signal(g.pointwise(source, scalar.activation(equation.name)), views)


def _structural(
    equation: Equation, operands: list[Any], signals: list[int]
) -> g.Node | list[g.Node]:
    """The node of an equation that is not a scalar function of one source."""
    name = equation.name
    if any(operands[i].node is None for i in signals):
        raise _unsupported(equation)
    shape = tuple(_aval(equation).shape)
    nodes = [operands[i].node for i in signals]
    if name in _MERGES:
        nodes = [_broadcast(n, shape) for n in nodes]
    if name in ("add", "add_any", "sub"):
        return _sum(name, nodes, operands, signals)
    if name == "neg":
        return _scaled(nodes[0], -1.0)
    if name == "concatenate" and len(signals) == len(operands):
        return g.concat(*nodes, axis=equation.params["dimension"])
    if name in _AFFINE or (
        len(signals) == 1 and signals[0] in _AFFINE_IN.get(name, ())
    ):
        return _affine(equation, operands, signals)
    if name == "select_n" and 0 not in signals:
        return _affine(equation, operands, signals)
    if name in ("reduce_window_max", "reduce_max"):
        return g.MaxPool((nodes[0],), shape, tuple(_windows(equation, nodes[0].shape)))
    if name in ("max", "min"):
        return _extremum(name, nodes, operands, signals)
    if name in ("mul", "div") and len(signals) == 2:
        return g.join("product" if name == "mul" else "quotient", *nodes)
    raise _unsupported(equation)


def _broadcast(node: g.Node, shape: tuple[int, ...]) -> g.Node:
    """The node repeated along axes of size one, as merges of two signals need it."""
    if node.shape == shape:
        return node
    repeat = functools.partial(jnp.broadcast_to, shape=shape)
    linear = linear_maps.ProgramMap(node.shape, shape, repeat)
    return g.Affine((node,), shape, (linear,), None)


def _sum(
    name: str, nodes: list[g.Node], operands: list[Any], signals: list[int]
) -> g.Node:
    shape = nodes[0].shape
    if len(signals) == 2:
        return g.join("subtract" if name == "sub" else "add", *nodes)
    factor = -1.0 if name == "sub" and signals[0] == 1 else 1.0
    other = operands[1 - signals[0]]
    sign = -1.0 if name == "sub" and signals[0] == 0 else 1.0
    bias = sign * np.broadcast_to(np.asarray(other, np.float64), shape).reshape(-1)
    linear = linear_maps.ScaleMap(shape, shape, factor)
    return g.Affine((nodes[0],), shape, (linear,), bias if bias.any() else None)


def _scaled(node: g.Node, factor: float, bias: np.ndarray | None = None) -> g.Affine:
    linear = linear_maps.ScaleMap(node.shape, node.shape, factor)
    return g.Affine((node,), node.shape, (linear,), bias)


def _extremum(
    name: str, nodes: list[g.Node], operands: list[Any], signals: list[int]
) -> g.Node:
    """Returns max by join, or ``relu(x - c) + c`` for an array c; min by signs."""
    sign, shape = (1.0 if name == "max" else -1.0), nodes[0].shape
    if len(signals) == 2:
        top = g.join("max", *(n if sign > 0 else _scaled(n, -1.0) for n in nodes))
        return top if sign > 0 else _scaled(top, -1.0)
    other = np.asarray(operands[1 - signals[0]], np.float64)
    level = sign * np.broadcast_to(other, shape).reshape(-1)
    return _scaled(g.relu(_scaled(nodes[0], sign, -level)), sign, sign * level)


def _affine(
    equation: Equation, operands: list[Any], signals: list[int]
) -> g.Node | list[g.Node]:
    """An equation that is affine in its signals, as one map per signal and a bias."""
    avals: list[Any] = [v.aval for v in equation.eqn.invars]
    zeros = [
        jnp.zeros(avals[i].shape, avals[i].dtype) if i in signals else x
        for i, x in enumerate(operands)
    ]
    mixed = equation.name in _BIASED and len(signals) < len(operands)
    at_zero: list[Any] = [v.aval for v in equation.eqn.outvars]
    if mixed:
        at_zero = _jax.bind(equation.eqn, zeros)
    nodes: list[g.Node] = []
    for out, base in enumerate(at_zero):
        biased = mixed and bool(np.asarray(base).any())
        maps = []
        for i in signals:

            def program(
                x: Any, i: int = i, out: int = out, base: Any = base, b: bool = biased
            ) -> jax.Array:
                given = jnp.asarray(x, avals[i].dtype)
                values = [given if j == i else z for j, z in enumerate(zeros)]
                value = _jax.bind(equation.eqn, values)[out]
                return value - base if b else value

            maps.append(
                linear_maps.ProgramMap(
                    tuple(avals[i].shape), tuple(base.shape), program, avals[i].dtype
                )
            )
        bias = np.asarray(base, np.float64).reshape(-1) if biased else None
        parents = tuple(operands[i].node for i in signals)
        nodes.append(g.Affine(parents, tuple(base.shape), tuple(maps), bias))
    return nodes if len(nodes) > 1 else nodes[0]


def _windows(equation: Equation, shape: tuple[int, ...]) -> list[np.ndarray]:
    """Flat indices under each window of a maximum; padding is left out."""
    index = np.arange(int(np.prod(shape))).reshape(shape)
    p = equation.params
    if equation.name == "reduce_max":
        axes = tuple(p["axes"])
        kept = [a for a in range(len(shape)) if a not in axes]
        rows = index.transpose(*kept, *axes)
        count = int(np.prod([shape[a] for a in kept]))
        return list(rows.reshape(count, -1))
    if any(d != 1 for d in p.get("base_dilation") or ()):
        raise _unsupported(equation)
    sizes = p["window_dimensions"]
    strides = p["window_strides"] or (1,) * len(sizes)
    dilation = p.get("window_dilation") or (1,) * len(sizes)
    padded = np.pad(index, p["padding"], constant_values=-1)
    spans = tuple((k - 1) * d + 1 for k, d in zip(sizes, dilation))
    view = np.lib.stride_tricks.sliding_window_view(padded, spans)
    steps = tuple(slice(None, None, s) for s in strides)
    inner = tuple(slice(None, None, d) for d in dilation)
    rows = view[steps + inner].reshape(-1, int(np.prod(sizes)))
    return [row[row >= 0] for row in rows]


def _aval(equation: Equation) -> Any:
    return equation.eqn.outvars[0].aval


def _unsupported(equation: Equation) -> UnsupportedModelError:
    shapes = ", ".join(str(v.aval) for v in equation.eqn.invars)
    places = [equation.scope or "the model's top level"]
    places += [f"({equation.source})"] if equation.source.strip(" ()") else []
    return UnsupportedModelError(
        message(
            f"Primitive {equation.name!r} on ({shapes}), reached at "
            f"{' '.join(places)}.",
            "It is no affine map, no elementwise function of one signal, no maximum "
            "over windows and no entrywise merge.",
            "Leave it out of the model given here (for example return the logits "
            "instead of the argmax), or rewrite it with such steps.",
        )
    )
