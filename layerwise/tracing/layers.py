"""The layers of a model, read off its program.

A layer is a weight operation (dense, convolution) and what follows it until its signal
is read by the next one: bias, activation, pooling. In the papers' notation layer ``l``
reads ``z_{l-1}`` and makes ``u`` (after the bias), ``v`` (after the activation) and
``z`` (after the pooling). What follows is found as the chain of values through which
all of the layer's signal passes, so that a residual sum ends the layer before it and
begins a region of its own.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from layerwise.tracing.connections import Connections
from layerwise.tracing.dataflow import Dataflow
from layerwise.tracing.graph import Equation, Graph
from layerwise.tracing.model import ModelFunction
from layerwise.tracing.pointwise import ScalarFunction


@dataclasses.dataclass(frozen=True)
class Step:
    """What happens to a layer's signal between two values that it all passes through.

    Attributes:
        kind: "layout", "bias" (a parameter is added), "scale" (multiplied by one),
            "pointwise", "max_pool", "sum_pool", or "other".
        value: The value after the step.
        names: The primitives that it is made of.
        source: The user's source line.
        phi: The scalar function of a pointwise step.
        window: Number of entries that a pooling step combines.
    """

    kind: str
    value: int
    names: tuple[str, ...]
    source: str
    phi: ScalarFunction | None = None
    window: int = 1


@dataclasses.dataclass(frozen=True)
class Layer:
    """One weight operation and what follows it.

    Attributes:
        index: 1 for the first weight operation of the program.
        path: Path of the module or parameter that owns the weight.
        kind: "dense" or "conv".
        operand: The value it reads, z of the layer before (or a merge, or the input).
        operand_root: The root of that value.
        u: Pre-activation, after the bias.
        v: After the activation.
        z: After the pooling: the last value before the signal is read or merged.
        weight: The value that holds the weight as the operation uses it.
        weight_leaves: Parameter leaves that the weight is made of.
        bias: The value that is added, or None.
        bias_leaves: Parameter leaves that the bias is made of.
        connections: The connections of the operation.
        steps: From u to z.
        shape: Shape of u, batch included.
        source: The user's source line.
    """

    index: int
    path: str
    kind: str
    operand: int
    operand_root: int
    root: int
    u: int
    v: int
    z: int
    weight: int
    weight_leaves: tuple[str, ...]
    bias: int | None
    bias_leaves: tuple[str, ...]
    connections: Connections
    steps: tuple[Step, ...]
    shape: tuple[int, ...]
    source: str


@dataclasses.dataclass(frozen=True)
class Lookup:
    """Rows of a parameter, chosen by the data: an embedding.

    Attributes:
        path: Path of the module or parameter that owns the table.
        root: The rows that were looked up.
        leaves: Parameter leaves that the table is made of.
        source: The user's source line.
    """

    path: str
    root: int
    leaves: tuple[str, ...]
    source: str


@dataclasses.dataclass(frozen=True, eq=False)
class Loop:
    """The body of a scan or a while, or one branch of a cond, if it holds layers.

    Attributes:
        equation: The scan, while or cond.
        flow: The roles of the body's values.
        layers: The layers of the body.
        loops: The loops and branches within it that hold layers.
        lookups: The embeddings of the body.
        length: How often the body runs: once for each iteration of a scan. A while and
            a branch count as one.
        body: Which of the equation's bodies it is.
    """

    equation: Equation
    flow: Dataflow
    layers: tuple[Layer, ...]
    loops: tuple["Loop", ...]
    lookups: tuple[Lookup, ...]
    length: int
    body: int = 0

    @property
    def graph(self) -> Graph:
        """The body."""
        return self.equation.bodies[self.body]

    def graphs(self) -> tuple[Graph, ...]:
        """Returns the body and those of the loops within it."""
        return (self.graph, *(g for loop in self.loops for g in loop.graphs()))


@dataclasses.dataclass(frozen=True, eq=False)
class TracedModel:
    """A model's program with its layers found.

    Attributes:
        model: The pure function that was traced.
        graph: Its program; graph inputs are the parameter leaves, then the data inputs.
        flow: What is signal, what is parameter, what merges.
        layers: In program order, without those of loops.
        loops: The loops and branches that hold layers.
        lookups: The embeddings, in program order, without those of loops.
        leaf_values: Parameter leaf name -> its graph input.
        input_values: The data inputs among the graph inputs.
        output_tree: Structure of what the model returns.
    """

    model: ModelFunction
    graph: Graph
    flow: Dataflow
    layers: tuple[Layer, ...]
    loops: tuple[Loop, ...]
    lookups: tuple[Lookup, ...]
    leaf_values: Mapping[str, int]
    input_values: tuple[int, ...]
    output_tree: Any

    @property
    def signal_input(self) -> int | None:
        """The floating-point data input, if there is just one."""
        read = {v for e in self.graph.equations for v in e.values_in}
        floats = [
            v
            for v in self.input_values
            if v in read and jnp.issubdtype(self.graph.avals[v].dtype, jnp.floating)
        ]
        return floats[0] if len(floats) == 1 else None

    def all_layers(self) -> tuple[Layer, ...]:
        """Returns the layers, those of loops' bodies included, in program order."""

        def inside(part: "TracedModel | Loop") -> list[Layer]:
            return [*part.layers, *(y for loop in part.loops for y in inside(loop))]

        return tuple(sorted(inside(self), key=lambda y: y.root))
