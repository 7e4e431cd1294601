"""What a model is, before anything is measured: its layers, blocks, paths and cost."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from layerwise.report.console import as_text, fitted, table_of
from layerwise.report.evidence import normalizes
from layerwise.tracing import TracedModel, trace
from layerwise.tracing.blocks import Block, blocks
from layerwise.tracing.cost import flops, layer_flops
from layerwise.tracing.layers import Step
from layerwise.tracing.model import check_params
from layerwise.tracing.prepare import prepare
from layerwise.tracing.receptive_field import receptive_fields
from layerwise.tracing.routes import count_paths
from layerwise.tracing.topology import classify
from layerwise.types import PyTree


if TYPE_CHECKING:
    import pandas as pd


@dataclasses.dataclass(frozen=True)
class LayerFacts:
    """One weight operation.

    Attributes:
        index: 1 for the first.
        path: Path of the module or parameter that owns the weight.
        kind: "dense" or "conv".
        shape: Shape of its output, batch included.
        parameters: Entries of its weight and bias.
        fan_in: Weights that one output sums over, padding ignored.
        flops: Operations of its product on the whole batch, each time it runs.
        receptive_field: Places of the input that an output can depend on, along each
            axis that the first layer shares its weights over; empty where there is no
            such axis, or within a loop.
        follows: What comes after the bias: "pointwise", "max_pool", "normalization"...
        source: The user's source line.
    """

    index: int
    path: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    fan_in: int
    flops: int
    receptive_field: tuple[int, ...]
    follows: tuple[str, ...]
    source: str


@dataclasses.dataclass(frozen=True)
class Description:
    """What a model's graph is.

    Attributes:
        name: The model's class or function name.
        layers: Its weight operations, in program order.
        blocks: Where its signal splits and meets again.
        connections: "residual" (a series of sums with the identity), "skip"
            (concatenated, gated or long encoder-decoder connections) or "neither".
        paths: Ways from the input to the output; 2^n in a residual net of n blocks.
        parameters: Entries of all parameter leaves, running statistics left out.
        flops: Operations of all products in one forward pass of the batch.
        batch: Examples that `flops` and the shapes are for.
    """

    name: str
    layers: tuple[LayerFacts, ...]
    blocks: tuple[Block, ...]
    connections: str
    paths: int
    parameters: int
    flops: int
    batch: int

    def sentence(self) -> str:
        """Returns the description in one line."""
        kinds = {k: sum(b.repeats for b in self.blocks if b.kind == k) for k in _NOUNS}
        held = [f"{n} {_NOUNS[k]}{'s' * (n > 1)}" for k, n in kinds.items() if n]
        return (
            f"{self.name}: {len(self.layers)} layers, {self.parameters:,} parameters, "
            f"{_engineering(self.flops / self.batch)}FLOPs an example; "
            f"{', '.join(held) or 'no blocks'}: connections {self.connections}; "
            f"{power(self.paths)} path{'s' * (self.paths != 1)}."
        )

    def to_frame(self) -> "pd.DataFrame":
        """Returns one row per layer, with the fields of `LayerFacts`."""
        import pandas as pd

        return pd.DataFrame([dataclasses.asdict(y) for y in self.layers])

    def __str__(self) -> str:
        return as_text(self)

    __repr__ = __str__

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        yield self.sentence()
        rows = [*self._cells()]
        left = ("path", "kind", "then")
        yield from fitted(
            lambda left_out: [table_of(_COLUMNS, rows, left_out, left=left)],
            _SPARED,
            [y.path for y in self.layers],
            options.max_width,
        )

    def _repr_html_(self) -> str:
        import html

        def row(cells: Any, tag: str) -> str:
            inner = "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells)
            return f"<tr>{inner}</tr>"

        body = "".join(row(cells, "td") for cells in self._cells())
        return (
            f"<p>{html.escape(self.sentence())}</p>"
            '<div style="max-height:24em;overflow:auto"><table><thead>'
            f"{row(_COLUMNS, 'th')}</thead><tbody>{body}</tbody></table></div>"
        )

    def _cells(self) -> Iterator[tuple[str, ...]]:
        for y in self.layers:
            yield (
                str(y.index),
                y.path,
                y.kind,
                "x".join(map(str, y.shape[1:])),
                f"{y.parameters:,}",
                f"{y.fan_in:,}",
                _engineering(y.flops / self.batch),
                "x".join(map(str, y.receptive_field)) or "-",
                ", ".join(y.follows) or "-",
            )


_NOUNS = {"add": "sum", "concat": "concatenation", "gate": "gate"}
_COLUMNS = (
    "layer",
    "path",
    "kind",
    "output",
    "params",
    "fan-in",
    "FLOPs",
    "sees",
    "then",
)
_SPARED = ("then", "kind", "fan-in", "sees")
"""Columns that a narrow terminal goes without, the first one first."""


def power(n: int) -> str:
    """Returns a count, as a power of two where it is a large one.

    >>> power(2**54), power(6), power(3**40)
    ('2^54', '6', '1.2e+19 (2^63.4)')
    """
    if n < 1024:
        return str(n)
    exponent = math.log2(n)
    if n == 1 << (n.bit_length() - 1):
        return f"2^{n.bit_length() - 1}"
    plain = f"{n:.1e} " if n.bit_length() < 1000 else ""
    return f"{plain}(2^{exponent:.1f})"


def _engineering(x: float) -> str:
    """Returns three digits and an SI prefix, with a space before the unit."""
    for prefix, unit in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if x >= unit:
            return f"{x / unit:.3g} {prefix}"
    return f"{x:.3g} "


def describe(
    model: Any,
    inputs: Any = None,
    *,
    params: PyTree = None,
    kwargs: Mapping[str, Any] | None = None,
    rngs: Mapping[str, jax.Array] | None = None,
) -> Description:
    """Describes a model: layers, shapes, parameters, cost, receptive fields, blocks.

    Nothing is computed but shapes. All counts are exact, for the program that the model
    is on these inputs; receptive fields are upper bounds (masks are not looked at), and
    FLOPs are those of matrix products and convolutions, two for each multiplication
    with its addition.

    Args:
        model: A Flax module (Linen, NNX), unmodified, or ``apply(params, *inputs)``.
        inputs: Example inputs, batch axis first; None where the model declares an
            ``input_shape``.
        params: For a plain function: its parameter tree, of which shapes are read.
        kwargs: Keyword arguments of the model's call.
        rngs: Keys of the streams that the call draws from, by name (Linen).

    Returns:
        The description; it prints as a table.

    Raises:
        InputError: If inputs are missing or cannot be used.
        ParametersError: If `params` do not belong to the model.
        UnsupportedModelError: If the model has no parameters.

    Example:
        >>> found = describe(lw.zoo.cifar_resnet(depth=110))
        >>> found.connections, found.paths == 2**54, len(found.blocks)
        ('residual', True, 54)

    References:
        [Veit2016] (paths).
    """
    ready = prepare(model, params, inputs, kwargs=kwargs, rngs=rngs)
    check_params(ready.model, ready.example, ready.own)
    traced = trace(ready.model, ready.example, ready.inputs, ready.once)
    found = blocks(traced)
    return Description(
        name=ready.model.name,
        layers=_layers(traced),
        blocks=found,
        connections=classify(traced, found),
        paths=count_paths(traced),
        parameters=sum(_sizes(traced).values()),
        flops=flops(traced),
        batch=int(np.shape(ready.inputs[0])[0]) if np.ndim(ready.inputs[0]) else 1,
    )


def _sizes(traced: TracedModel) -> dict[str, int]:
    """Returns the entries of every parameter leaf; running statistics are none."""
    return {
        name: math.prod(traced.graph.avals[value].shape)
        for name, value in traced.leaf_values.items()
        if not name.startswith("batch_stats")
    }


def _layers(traced: TracedModel) -> tuple[LayerFacts, ...]:
    sizes, seen = _sizes(traced), receptive_fields(traced)
    cost = layer_flops(traced)
    return tuple(
        LayerFacts(
            index=i,
            path=y.path,
            kind=y.kind,
            shape=y.shape,
            parameters=sum(sizes.get(n, 0) for n in {*y.weight_leaves, *y.bias_leaves}),
            fan_in=y.connections.fan_in,
            flops=cost[y.root],
            receptive_field=seen.get(y.u, ()),
            follows=tuple(_named(s) for s in y.steps if s.kind != "layout"),
            source=y.source,
        )
        for i, y in enumerate(traced.all_layers(), 1)
    )


def _named(step: Step) -> str:
    return "normalization" if normalizes(step) else step.kind
