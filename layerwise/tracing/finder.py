"""Finding the layers of a program: its weight operations and what follows each."""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from layerwise import _jax
from layerwise.errors import InputError, LayerwiseError, UnsupportedModelError, message
from layerwise.tracing import connections, dataflow, primitives
from layerwise.tracing.connections import Connections
from layerwise.tracing.dataflow import Dataflow
from layerwise.tracing.graph import Equation, Graph, from_jaxpr
from layerwise.tracing.layers import Layer, Lookup, Loop, Step, TracedModel
from layerwise.tracing.model import (
    ModelFunction,
    call_error,
    leaf_name,
    leak_error,
    without_place,
)
from layerwise.tracing.once import Once
from layerwise.tracing.pointwise import ScalarFunction, scalar_function
from layerwise.tracing.uncollected import uncollected
from layerwise.types import PyTree


@uncollected()
def trace(
    model: ModelFunction,
    params: PyTree,
    inputs: Sequence[Any],
    once: Once | None = None,
) -> TracedModel:
    """Traces a model and finds its layers. Nothing is computed.

    Args:
        model: The model as a pure function.
        params: Its parameters, as arrays or as `jax.ShapeDtypeStruct`.
        inputs: Its data inputs, likewise.
        once: The model's trace on these inputs, if there is one already.

    Raises:
        UnsupportedModelError: If the model has no weight operations, one with fan-in 0,
            or branches in Python on the values of its data.
        InputError: If the model cannot be called on these inputs, or if integers enter
            a weight operation as if they were a signal.
    """
    if once is None:
        jaxpr, output = _program(model, params, inputs)
    else:
        jaxpr, output = once.program, once.output
    graph = from_jaxpr(jaxpr)
    paths = [p for p, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    leaf_values = {leaf_name(p): v for p, v in zip(paths, graph.inputs, strict=False)}
    data = graph.inputs[len(paths) :]
    leaves = {v: frozenset([n]) for n, v in leaf_values.items()}
    flow = dataflow.analyze(graph, data, leaves)
    first = next((x for x in inputs if getattr(x, "ndim", 0)), None)
    sizes = {n: math.prod(graph.avals[v].shape) for n, v in leaf_values.items()}
    finder = _LayerFinder(
        graph, flow, 1 if first is None else first.shape[0], sizes, {}
    )
    traced = TracedModel(
        model,
        graph,
        flow,
        finder.layers(),
        finder.loops(),
        finder.lookups(),
        leaf_values,
        data,
        jax.tree.structure(output),
    )
    if not traced.all_layers():
        raise UnsupportedModelError(
            message(
                f"{model.name} has no weight operation "
                f"({len(graph.equations)} equations were read).",
                "Variance is propagated by dense and convolution layers; between "
                "them nothing is random.",
                "Pass a model with at least one dense or convolution layer.",
            )
        )
    return traced


def _program(
    model: ModelFunction, params: PyTree, inputs: Sequence[Any]
) -> tuple[_jax.ClosedJaxpr, PyTree]:
    """Returns what a model computes, and the shapes of its output."""
    shapes = jax.tree.map(without_place, (params, tuple(inputs)))
    try:
        jaxpr, output = jax.make_jaxpr(
            lambda params, inputs: model.apply(params, *inputs), return_shape=True
        )(*shapes)
    except LayerwiseError:
        raise
    except Exception as error:
        raise call_error(model, inputs, error) from error
    for constant in jaxpr.consts:
        if _jax.is_tracer(constant):
            raise leak_error(model, f"a {constant.dtype}{list(constant.shape)}.")
    return jaxpr, output


# Of a while's two bodies the first is its condition.
_BODIES_LOOKED_INTO: dict[str, Sequence[int]] = {"scan": (0,), "while": (1,)}


class _LayerFinder:
    """Finds the layers of one graph, and of the bodies of its loops and conds.

    Args:
        graph: The program, or a body.
        flow: The roles of its values.
        batch: Size of the batch axis.
        sizes: Parameter leaf name -> number of entries.
        used: Layer path -> how often it has been given; shared with bodies.
    """

    def __init__(
        self,
        graph: Graph,
        flow: Dataflow,
        batch: int,
        sizes: Mapping[str, int],
        used: dict[str, int],
    ) -> None:
        self.graph = graph
        self.flow = flow
        self.producers = graph.producers()
        self.batch = batch
        self.sizes = sizes
        self.used = used
        self.functions: dict[str, ScalarFunction] = {}
        self.shared: dict[ScalarFunction, ScalarFunction] = {}
        self.constant: Callable[[int], np.ndarray | None] = functools.cache(
            lambda v: dataflow.constant_value(graph, v, flow)
        )

    def layers(self) -> tuple[Layer, ...]:
        """Returns the layers of this graph, those of bodies left out."""
        found: list[Layer] = []
        for equation in self.graph.equations:
            out = equation.outputs[0] if equation.outputs else -1
            if self.flow.kind.get(out) == "weight" and self.flow.root[out] == out:
                found.append(self._layer(equation, len(found) + 1))
        return tuple(found)

    def lookups(self) -> tuple[Lookup, ...]:
        """Returns the embeddings of this graph, those of bodies left out."""
        found = []
        for equation in self.graph.equations:
            out = equation.outputs[0] if equation.outputs else -1
            if self.flow.kind.get(out) == "lookup":
                leaves = sorted(set().union(*map(self.flow.leaves_of, equation.inputs)))
                path = self._name(leaves, "lookup ")
                found.append(Lookup(path, out, tuple(leaves), equation.source))
        return tuple(found)

    def loops(self) -> tuple[Loop, ...]:
        """Returns the loops and branches of this graph that hold layers."""
        found = []
        for equation in self.graph.equations:
            for number in _BODIES_LOOKED_INTO.get(
                equation.name, range(len(equation.bodies))
            ):
                body = equation.bodies[number]
                flow = dataflow.analyze_body(equation, number, self.flow)
                inner = _LayerFinder(body, flow, self.batch, self.sizes, self.used)
                layers, loops, lookups = inner.layers(), inner.loops(), inner.lookups()
                if equation.outputs and (layers or loops or lookups):
                    length = equation.params.get("length", 1)
                    found.append(
                        Loop(equation, flow, layers, loops, lookups, length, number)
                    )
        return tuple(found)

    def _layer(self, equation: Equation, index: int) -> Layer:
        signal, weight = self._split_operands(equation)
        leaves = sorted(self.flow.leaves_of(weight))
        path = self._name(leaves)
        self._refuse_complex(equation, path)
        counted = self._count(equation, signal, weight, path)
        self._refuse_integers(signal, path)
        chain = dataflow.dominators(self.graph, self.flow, equation.outputs[0])
        steps = [self._step(a, b) for a, b in itertools.pairwise(chain)]
        u, bias, rest = _after_bias(chain[0], steps)
        v = u
        for step in rest:
            if step.kind in ("max_pool", "sum_pool", "other"):
                break
            v = step.value
        bias_value = self._bias_operand(bias) if bias is not None else None
        return Layer(
            index=index,
            path=path,
            kind="conv" if equation.name == "conv_general_dilated" else "dense",
            operand=signal,
            operand_root=self.flow.root[signal],
            root=chain[0],
            u=u,
            v=v,
            z=rest[-1].value if rest else u,
            weight=weight,
            weight_leaves=tuple(leaves),
            bias=bias_value,
            bias_leaves=tuple(sorted(self.flow.leaves_of(bias_value)))
            if bias_value is not None
            else (),
            connections=counted,
            steps=tuple(rest),
            shape=tuple(self.graph.avals[u].shape),
            source=equation.source,
        )

    def _split_operands(self, equation: Equation) -> tuple[int, int]:
        a, b = equation.inputs[:2]
        signal, weight = (a, b) if self.flow.is_signal(a) else (b, a)
        assert isinstance(signal, int)
        assert isinstance(weight, int)
        return signal, weight

    def _name(self, leaves: Sequence[str], kind: str = "") -> str:
        owner = max(leaves, key=lambda n: (self.sizes.get(n, 0), n))
        path = owner.rpartition("/")[0] or owner
        count = self.used[kind + path] = self.used.get(kind + path, 0) + 1
        return path if count == 1 else f"{path}#{count}"

    def _count(
        self, equation: Equation, signal: int, weight: int, path: str
    ) -> Connections:
        shape, kernel = (tuple(self.graph.avals[v].shape) for v in (signal, weight))
        first = equation.inputs[0] == signal
        if equation.name == "conv_general_dilated":
            if not first:
                raise UnsupportedModelError(
                    message(
                        f"{path} convolves a weight with the signal as its kernel, at "
                        f"{equation.source}.",
                        "Its connections are those of a hypernetwork, not of a layer.",
                        "Pass the signal as the first operand of the convolution.",
                    )
                )
            counted = connections.conv_connections(equation, shape, kernel)
        else:
            counted = connections.dot_connections(
                equation, shape, kernel, first, self.batch
            )
        if counted.fan_in == 0:
            raise UnsupportedModelError(
                message(
                    f"{path} has fan-in 0: it reads {shape} with a weight {kernel}, at "
                    f"{equation.source}.",
                    "Its output is zero whatever its weights are.",
                    "Give the layer before it at least one feature.",
                )
            )
        return counted

    def _refuse_complex(self, equation: Equation, path: str) -> None:
        dtypes = [self.graph.avals[v].dtype for v in equation.values_in]
        if any(jnp.issubdtype(d, jnp.complexfloating) for d in dtypes):
            raise UnsupportedModelError(
                message(
                    f"{path} computes with complex numbers, at {equation.source}.",
                    "A complex entry has two parts, and moments here are of real ones.",
                    "Write the layer with real weights for both parts.",
                )
            )

    def _refuse_integers(self, signal: int, path: str) -> None:
        """Raises if `signal` is an integer input that only layout has touched."""
        at = signal
        while at in self.producers and self.producers[at].name in primitives.LAYOUT:
            (at,) = self.producers[at].values_in[:1]
        dtype = self.graph.avals[at].dtype
        if self.flow.kind.get(at) == "input" and not jnp.issubdtype(dtype, jnp.inexact):
            raise InputError(
                message(
                    f"The input is {dtype}, and {path} multiplies it by weights.",
                    "Raw integers (pixels in 0..255, token numbers) are not a signal "
                    "of unit scale.",
                    "Pass normalized floats: inputs = (x / 255.0 - mean) / std; token "
                    "numbers belong in an embedding.",
                )
            )

    def _bias_operand(self, step: Step) -> int | None:
        equation = self.producers[step.value]
        others = [v for v in equation.values_in if not self.flow.is_signal(v)]
        return others[0] if others else None

    def _step(self, before: int, after: int) -> Step:
        equations = dataflow.between(self.graph, self.flow, before, after)
        names = tuple(e.name for e in equations)
        place = equations[-1].source
        make = functools.partial(Step, value=after, names=names, source=place)
        if all(n in primitives.LAYOUT for n in names):
            return make("layout")
        if len(equations) == 1:
            single = self._single_step(equations[0])
            if single is not None:
                kind, window = single
                return make(kind, window=window)
        phi = scalar_function(equations, before, after, self.constant)
        if phi is None:
            return make("other")
        # One function object for all layers with the same activation: what is compiled
        # or integrated for one of them serves all.
        if phi not in self.shared:
            key = str(jax.make_jaxpr(phi)(jax.ShapeDtypeStruct((), jnp.float32)))
            self.shared[phi] = self.functions.setdefault(key, phi)
        return make("pointwise", phi=self.shared[phi])

    def _single_step(self, equation: Equation) -> tuple[str, int] | None:
        """Returns (kind, window) of a step that is one equation with a known role."""
        p = equation.params
        shape = self.graph.avals[equation.values_in[0]].shape
        made_of = frozenset().union(*map(self.flow.leaves_of, equation.inputs))
        match equation.name:
            case "add" | "sub" | "add_any" if made_of:
                return "bias", 1
            case "mul" | "div" if made_of:
                return "scale", 1
            case "reduce_window_max":
                return "max_pool", math.prod(p["window_dimensions"])
            case "reduce_window_sum":
                return "sum_pool", math.prod(p["window_dimensions"])
            case "reduce_max":
                return "max_pool", math.prod(shape[a] for a in p["axes"])
            case "reduce_sum":
                return "sum_pool", math.prod(shape[a] for a in p["axes"])
        return None


def _after_bias(start: int, steps: list[Step]) -> tuple[int, Step | None, list[Step]]:
    """Returns u, the bias step if there is one, and the steps that follow u."""
    for i, step in enumerate(steps):
        if step.kind == "bias":
            return step.value, step, steps[i + 1 :]
        if step.kind != "layout":
            break
    return start, None, steps
