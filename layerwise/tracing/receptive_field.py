"""How much of the input an entry of a layer can depend on.

Every axis of a value is a list of *atoms*, major to minor: so many places, each a step
apart along one axis of the input, or along none (channels, broadcasts). Whatever
combines entries along an axis widens the receptive field by the distance between the
first and the last of them:

* a window of k taps, d apart, on places a step s apart: (k - 1) d s; its outputs are
  (stride x s) apart;
* a sum over the whole axis, in a matrix product or a reduction: (n - 1) s.

Reshapes merge and split atoms, so that patches cut by a reshape, heads of attention and
flattened maps need no rules of their own. What is not understood has seen everything.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction

import numpy as np

from layerwise import _jax
from layerwise.tracing import primitives
from layerwise.tracing.graph import Atom as Operand, Equation, Graph
from layerwise.tracing.layers import TracedModel


@dataclasses.dataclass(frozen=True)
class Atom:
    """`n` places, each `step` apart along an axis of the input; None for no axis."""

    axis: int | None
    step: Fraction
    n: int


Axis = tuple[Atom, ...]


@dataclasses.dataclass(frozen=True)
class Field:
    """What a value's entries have seen.

    Attributes:
        axes: The atoms of each of its axes.
        extent: Axis of the input -> how many places of it an entry depends on.
    """

    axes: tuple[Axis, ...]
    extent: Mapping[int, Fraction]


def receptive_fields(traced: TracedModel) -> dict[int, tuple[int, ...]]:
    """Returns the receptive field of every signal value outside of loops.

    Args:
        traced: A traced model of one data input.

    Returns:
        Value -> places seen along each axis of the input that the first weight
        operation shares its weights over (height and width of an image, the positions
        of a sequence), clipped to the input's size. An upper bound: masks, and weights
        that happen to be zero, are not looked at. Empty where there is no such axis.
    """
    sources = [v for v in traced.input_values if traced.flow.is_signal(v)]
    if len(sources) != 1:
        return {}
    shape = traced.graph.avals[sources[0]].shape
    fields = _propagate(traced, sources[0], shape)
    shared = _shared_axes(traced, fields)
    return {
        value: tuple(min(math.ceil(field.extent[a]), shape[a]) for a in shared)
        for value, field in fields.items()
        if shared
    }


def _shared_axes(traced: TracedModel, fields: Mapping[int, Field]) -> list[int]:
    """Returns the input's axes, without the batch, that outlive the first layer."""
    roots = sorted(v for v, k in traced.flow.kind.items() if k in ("weight", "lookup"))
    if not roots or roots[0] not in fields:
        return []
    kept = {a.axis for axis in fields[roots[0]].axes for a in axis if a.n > 1}
    return sorted(a for a in kept if a)


def _propagate(traced: TracedModel, source: int, shape: Sequence[int]) -> dict:
    graph = traced.graph
    one = Fraction(1)
    fields = {
        source: Field(
            tuple((Atom(i, one, n),) for i, n in enumerate(shape)),
            {i: one for i in range(len(shape))},
        )
    }
    for equation in graph.equations:
        if not any(v in fields for v in equation.values_in):
            continue
        rule = _rule(equation)
        for value in equation.outputs:
            out = graph.avals[value].shape
            field = rule(_Call(equation, graph, fields, out))
            if field is None or tuple(_size(a) for a in field.axes) != tuple(out):
                field = _everything(shape, out)
            fields[value] = field
    return fields


def _size(axis: Axis) -> int:
    return math.prod(a.n for a in axis)


def _blank(n: int) -> Axis:
    return (Atom(None, Fraction(0), n),)


def _everything(shape: Sequence[int], out: Sequence[int]) -> Field:
    return Field(
        tuple(_blank(n) for n in out), {i: Fraction(n) for i, n in enumerate(shape)}
    )


def _joined(fields: Sequence[Field]) -> dict[int, Fraction]:
    return {a: max(f.extent[a] for f in fields) for a in fields[0].extent}


def _summed(extent: Mapping[int, Fraction], axis: Axis) -> dict[int, Fraction]:
    """Returns the extent after combining all the places of an axis."""
    wider = dict(extent)
    for atom in axis:
        if atom.axis is not None:
            wider[atom.axis] += (atom.n - 1) * atom.step
    return wider


def _window(
    field: Field, at: int, taps: int, dilation: int, stride: int, zoom: int, out: int
) -> Field:
    """Slides a window along one axis, whose places are first spread by `zoom`."""
    axis, extent = field.axes[at], dict(field.extent)
    tracked = [a for a in axis if a.axis is not None]
    if (taps, stride, zoom) == (1, 1, 1) and out == _size(axis):
        return field
    if not tracked:
        return Field(_put(field.axes, at, _blank(out)), extent)
    if len(tracked) > 1 or axis[0].axis is None:
        return Field(_put(field.axes, at, _blank(out)), _summed(extent, axis))
    first = axis[0]
    spread = zoom * math.prod(a.n for a in axis[1:])  # places an input place became
    reach = Fraction((taps - 1) * dilation, spread)
    crossed = reach if zoom == spread == 1 else Fraction(math.ceil(reach))
    if zoom > 1 and spread == zoom:  # only every zoom-th place holds an input
        crossed = Fraction((taps - 1) * dilation // zoom)
    extent[first.axis] += crossed * first.step  # type: ignore[index]
    step = first.step * stride / spread
    return Field(_put(field.axes, at, (Atom(first.axis, step, out),)), extent)


def _put(axes: tuple[Axis, ...], at: int, axis: Axis) -> tuple[Axis, ...]:
    return (*axes[:at], axis, *axes[at + 1 :])


@dataclasses.dataclass(frozen=True)
class _Call:
    """An equation, the fields so far, and the shape of the output asked for."""

    equation: Equation
    graph: Graph
    fields: Mapping[int, Field]
    out: tuple[int, ...]

    @property
    def params(self) -> dict:
        return self.equation.params

    @property
    def operands(self) -> list[Field]:
        """The fields of the operands that are signals."""
        return [self.fields[v] for v in self.equation.values_in if v in self.fields]

    def field(self, atom: Operand) -> Field | None:
        """The field of one operand; None where it is no signal."""
        return self.fields.get(atom) if isinstance(atom, int) else None

    def shape(self, atom: Operand) -> tuple[int, ...]:
        """The shape of one operand."""
        return (
            self.graph.avals[atom].shape
            if isinstance(atom, int)
            else np.shape(atom.val)
        )


Rule = Callable[[_Call], Field | None]


def _same(call: _Call) -> Field:
    """Entry by entry: each axis from the operand that knows most of it."""

    def known(axis: Axis) -> int:
        return sum(a.axis is not None for a in axis)

    axes = []
    for i, n in enumerate(call.out):
        fitting = [x.axes[i] for x in call.operands if _size(x.axes[i]) == n]
        axes.append(max(fitting, key=known, default=_blank(n)))
    return Field(tuple(axes), _joined(call.operands))


def _transpose(call: _Call) -> Field | None:
    (x,) = call.operands
    return Field(tuple(x.axes[a] for a in call.params["permutation"]), dict(x.extent))


def _broadcast(call: _Call) -> Field | None:
    (x,) = call.operands
    shape = call.params["shape"]
    axes = [_blank(n) for n in shape]
    for axis, to in zip(x.axes, call.params["broadcast_dimensions"], strict=True):
        if _size(axis) == shape[to]:
            axes[to] = axis
    return Field(tuple(axes), x.extent)


def _reshape(call: _Call) -> Field | None:
    (x,) = call.operands
    shape = call.out
    axes = regroup([a for axis in x.axes for a in axis], shape)
    return None if axes is None else Field(axes, x.extent)


def regroup(atoms: Sequence[Atom], shape: Sequence[int]) -> tuple[Axis, ...] | None:
    """Deals atoms out to new axes, splitting them where they divide; else None.

    >>> one = Fraction(1)
    >>> [[a.n for a in axis] for axis in regroup([Atom(1, one, 6), Atom(2, one, 4)],
    ...                                          (3, 8))]
    [[3], [2, 4]]
    """
    left = [a for a in atoms if a.n != 1][::-1]
    axes: list[Axis] = []
    for wanted in shape:
        taken: list[Atom] = []
        size = 1
        while size < wanted:
            if not left:
                return None
            atom, rest = left.pop(), wanted // size
            if atom.n <= rest and rest % atom.n == 0:
                taken.append(atom)
                size *= atom.n
            elif atom.n % rest == 0:
                inner = atom.n // rest
                taken.append(Atom(atom.axis, atom.step * inner, rest))
                left.append(Atom(atom.axis, atom.step, inner))
                size = wanted
            else:
                return None
        axes.append(tuple(taken) or _blank(1))
    return tuple(axes)


def _squeeze(call: _Call) -> Field | None:
    (x,) = call.operands
    gone = call.params["dimensions"]
    return Field(tuple(a for i, a in enumerate(x.axes) if i not in gone), x.extent)


def _reduce(call: _Call) -> Field | None:
    (x,) = call.operands
    gone = call.params["axes"]
    extent = dict(x.extent)
    for a in gone:
        extent = _summed(extent, x.axes[a])
    return Field(tuple(a for i, a in enumerate(x.axes) if i not in gone), extent)


def _cropped(call: _Call) -> Field | None:
    """A part of every axis."""
    x = call.operands[0]
    strides = call.params.get("strides") or (1,) * len(call.out)
    for i, (n, stride) in enumerate(zip(call.out, strides, strict=True)):
        x = _window(x, i, 1, 1, stride, 1, n)
    return x


def _pad(call: _Call) -> Field | None:
    x = call.operands[0]
    out = call.out
    config = call.params["padding_config"]
    for i, (n, (_, _, interior)) in enumerate(zip(out, config, strict=True)):
        x = _window(x, i, 1, 1, 1, interior + 1, n)
    return x


def _concatenated(call: _Call) -> Field | None:
    at = call.params["dimension"]
    axis = max((x.axes[at] for x in call.operands), key=_size)
    if len(axis) > 1 and any(a.axis is not None for a in axis):
        return None
    n = call.out[at]
    x = _same(call)
    return Field(_put(x.axes, at, (dataclasses.replace(axis[0], n=n),)), x.extent)


def _stacked(call: _Call) -> Field | None:
    at = call.params["axis"]
    x = call.operands[0]
    axes = (*x.axes[:at], _blank(call.out[at]), *x.axes[at:])
    return Field(axes, _joined(call.operands))


def _pooling(call: _Call) -> Field | None:
    (x,) = call.operands
    p = call.params
    out = call.out
    for i, n in enumerate(out):
        x = _window(
            x,
            i,
            p["window_dimensions"][i],
            p["window_dilation"][i],
            p["window_strides"][i],
            p["base_dilation"][i],
            n,
        )
    return x


def _conv(call: _Call) -> Field | None:
    lhs, rhs = call.equation.inputs
    x, p = call.field(lhs), call.params
    if x is None or call.field(rhs) is not None:
        return None
    dims, kernel = p["dimension_numbers"], call.shape(rhs)
    channel = x.axes[dims.lhs_spec[1]]
    axes = [_blank(n) for n in call.out]
    axes[dims.out_spec[0]] = x.axes[dims.lhs_spec[0]]
    for i, at in enumerate(dims.lhs_spec[2:]):
        to = dims.out_spec[2 + i]
        x = _window(
            x,
            at,
            kernel[dims.rhs_spec[2 + i]],
            p["rhs_dilation"][i],
            p["window_strides"][i],
            p["lhs_dilation"][i],
            call.out[to],
        )
        axes[to] = x.axes[at]
    return Field(tuple(axes), _summed(x.extent, channel))


def _dot(call: _Call) -> Field | None:
    contract, batch = call.params["dimension_numbers"]
    operands = []
    for side, value in enumerate(call.equation.inputs):
        field = call.field(value)
        if field is None:
            field = Field(tuple(_blank(n) for n in call.shape(value)), {})
        extent = dict(field.extent)
        for a in contract[side]:
            extent = _summed(extent, field.axes[a])
        operands.append(Field(field.axes, extent))
    lhs, rhs = operands
    batched = [
        lhs.axes[i] if any(a.axis is not None for a in lhs.axes[i]) else rhs.axes[j]
        for i, j in zip(*batch, strict=True)
    ]
    free = [
        axis
        for side, x in enumerate(operands)
        for i, axis in enumerate(x.axes)
        if i not in contract[side] and i not in batch[side]
    ]
    return Field((*batched, *free), _joined([x for x in operands if x.extent]))


def _lookup(call: _Call) -> Field | None:
    """Rows of a table at integer inputs: a position sees its own integer."""
    table, index = call.equation.inputs[:2]
    x = call.field(index)
    if x is None or call.field(table) is not None:
        return None
    offsets = call.params["dimension_numbers"].offset_dims
    places = iter(x.axes[:-1])  # the last holds the index vector
    axes = tuple(
        _blank(n) if i in offsets else next(places, _blank(n))
        for i, n in enumerate(call.out)
    )
    return Field(axes, x.extent)


def _nothing(call: _Call) -> Field | None:
    return None


_RULES: dict[str, Rule] = {
    "transpose": _transpose,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "squeeze": _squeeze,
    "slice": _cropped,
    "split": _cropped,
    "pad": _pad,
    "concatenate": _concatenated,
    "stack": _stacked,
    "conv_general_dilated": _conv,
    "dot_general": _dot,
    "gather": _lookup,
    "expand_dims": _reshape,
}


def _rule(equation: Equation) -> Rule:
    name = equation.name
    if name in _RULES:
        return _RULES[name]
    if name.startswith("reduce_window"):
        return _pooling
    if name.startswith("reduce_") and name != "reduce_precision":
        return _reduce
    return _same if all(map(_is_entrywise, _names(equation.eqn))) else _nothing


def _names(eqn: _jax.JaxprEqn) -> Iterator[str]:
    """Yields the primitives that an equation is made of."""
    bodies = _jax.sub_jaxprs(eqn)
    if not bodies:
        yield _jax.primitive_name(eqn)
    for body in bodies:
        for inner in body.jaxpr.eqns:
            yield from _names(inner)


def _is_entrywise(name: str) -> bool:
    return name in primitives.ELEMENTWISE or name in primitives.LAYOUT
