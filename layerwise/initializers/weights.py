"""The weights of a model: which leaf each operation uses, along which axes."""

import dataclasses
import math
from collections.abc import Iterator

from layerwise.tracing import Layer, Loop, TracedModel, primitives
from layerwise.tracing.graph import Equation


_COPIES = frozenset(["convert_element_type", "copy", "copy_p", "optimization_barrier"])


@dataclasses.dataclass(frozen=True)
class Weight:
    """A weight operation or lookup, and the leaf that it multiplies by.

    Attributes:
        path: Path of the layer.
        leaf: Name of the one leaf that the weight is made of; None if of several.
        shape: Shape of the weight as the operation uses it.
        fan_in: Weights that one output sums over; 1 for a lookup.
        fan_out: Weights that one input meets.
        outs: Axes of `shape` that are outputs.
        batched: Axes along which the operation is repeated (groups of a dot).
        spatial: Axes of a convolution's taps.
        groups: Groups of a convolution: its output axis holds theirs one by one.
        direct: Whether the weight is the leaf itself (or a slice of a stacked one).
        linear: Whether scaling the leaf scales the weight: it is a rearrangement of it.
        lookup: Whether rows are read rather than multiplied.
    """

    path: str
    leaf: str | None
    shape: tuple[int, ...]
    fan_in: float
    fan_out: float
    outs: tuple[int, ...]
    batched: tuple[int, ...] = ()
    spatial: tuple[int, ...] = ()
    groups: int = 1
    direct: bool = True
    linear: bool = True
    lookup: bool = False

    @property
    def nameless(self) -> "Weight":
        """The same without names: equal for all operations of one geometry."""
        return dataclasses.replace(self, path="", leaf=None)


def weights(traced: TracedModel) -> tuple[Weight, ...]:
    """Returns the weight operations of a model, loops' included, in program order.

    A leaf that several operations share appears once for each, its first use first.
    """
    found = sorted(_inside(traced), key=lambda pair: pair[0])
    return tuple(weight for _, weight in found)


def _inside(part: TracedModel | Loop) -> Iterator[tuple[int, Weight]]:
    producers = part.graph.producers()
    for layer in part.layers:
        yield layer.root, _of_layer(part, layer, producers)
    for value, kind in part.flow.kind.items():
        equation = producers.get(value)
        if kind == "lookup" and equation is not None:
            weight = _of_lookup(part, equation)
            if weight is not None:
                yield value, weight
    for loop in part.loops:
        yield from _inside(loop)


def _of_layer(
    part: TracedModel | Loop, layer: Layer, producers: dict[int, Equation]
) -> Weight:
    equation = producers[layer.root]
    shape = tuple(part.graph.avals[layer.weight].shape)
    c = layer.connections
    direct = linear = True
    at = layer.weight
    while at in producers and linear:
        direct = direct and producers[at].name in _COPIES
        linear = producers[at].name in primitives.LAYOUT | {"slice"}
        (at,) = producers[at].values_in[:1]
    leaf = layer.weight_leaves[0] if len(layer.weight_leaves) == 1 else None
    skipped = math.prod(axis.input_dilation for axis in c.axes)
    if layer.kind == "conv":
        spec = equation.params["dimension_numbers"].rhs_spec
        outs, batched, spatial = (spec[0],), (), tuple(spec[2:])
        groups = equation.params["feature_group_count"]
    else:
        side = equation.inputs.index(layer.weight)
        contract, batch = equation.params["dimension_numbers"]
        batched, spatial, groups = tuple(batch[side]), (), 1
        outs = tuple(
            a for a in range(len(shape)) if a not in contract[side] and a not in batched
        )
    return Weight(
        layer.path,
        leaf,
        shape,
        c.fan_in / skipped,
        float(c.fan_out),
        outs,
        batched,
        spatial,
        groups,
        direct,
        linear,
    )


def _of_lookup(part: TracedModel | Loop, equation: Equation) -> Weight | None:
    table = equation.inputs[0]
    leaves = sorted(part.flow.leaves_of(table))
    if part.flow.is_signal(table) or len(leaves) != 1 or not isinstance(table, int):
        return None
    shape = tuple(part.graph.avals[table].shape)
    width = float(math.prod(shape[1:]))
    path = leaves[0].rpartition("/")[0] or leaves[0]
    outs = tuple(range(1, len(shape)))
    return Weight(path, leaves[0], shape, 1.0, width, outs, lookup=True)
