"""Where moments are stated: the named values of a traced model, in program order."""

import dataclasses

import jax.numpy as jnp

from layerwise.tracing.layers import TracedModel


@dataclasses.dataclass(frozen=True)
class NamedValue:
    """A value of the program with its place in the network.

    Attributes:
        value: Its number in the graph.
        layer: Number of the layer that it belongs to; 0 for the input.
        path: Path of the layer, or the primitive of a merge.
        kind: "input", "u" (pre-activation, after the bias), "v" (after the activation),
            "z" (after the pooling), or "merge" (a sum, product or concatenation).
        shape: Shape of the value, batch included.
        source: The user's source line.
    """

    value: int
    layer: int
    path: str
    kind: str
    shape: tuple[int, ...]
    source: str


def named_values(traced: TracedModel) -> tuple[NamedValue, ...]:
    """Returns the input, every layer's u, v and z, and every merge."""
    graph = traced.graph
    found: list[NamedValue] = []

    def add(value: int, layer: int, path: str, kind: str, source: str) -> None:
        aval = graph.avals[value]
        if jnp.issubdtype(aval.dtype, jnp.floating):
            shape = tuple(aval.shape)
            found.append(NamedValue(value, layer, path, kind, shape, source))

    if traced.signal_input is not None:
        add(traced.signal_input, 0, "input", "input", "")
    for y in traced.layers:
        add(y.u, y.index, y.path, "u", y.source)
        if y.v != y.u:
            add(y.v, y.index, y.path, "v", y.source)
        if y.z != y.v:
            add(y.z, y.index, y.path, "z", y.source)
    producers = graph.producers()
    for value, kind in traced.flow.kind.items():
        if kind == "merge":
            before = [y for y in traced.layers if y.root < value]
            layer = before[-1] if before else traced.layers[0]
            equation = producers[value]
            add(value, layer.index, equation.name, "merge", equation.source)
    return tuple(sorted(found, key=lambda p: p.value))
