"""A traced model with taps on some of its values, run forward and backward once."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from layerwise.measurement.coverage import blind_values
from layerwise.measurement.statistics import Statistic, outputs
from layerwise.measurement.taps import Reading, absent
from layerwise.measurement.walk import Readings, Walk
from layerwise.random import signs
from layerwise.tracing import Loop, TracedModel
from layerwise.tracing.graph import Evaluator
from layerwise.tracing.sites import LayerRun, layer_runs
from layerwise.types import PyTree


Place = tuple[int, tuple[int, ...]]
"""A value of the program and, for one in the body of a scan, the iteration."""


@dataclasses.dataclass(frozen=True, eq=False)
class TappedModel:
    """A traced model with taps on some of its values.

    Attributes:
        traced: The model.
        values: Where to tap, in order.
        override: Faster equivalents of some equations, or None.
        loss: Function of the model's output to differentiate, or None for independent
            cotangents of +1 and -1 at every entry of the output.
        statistics: What is asked of every tapped value beside its moments.
        weight_gradients: Whether weights are tapped too.
    """

    traced: TracedModel
    values: tuple[Place, ...]
    override: Evaluator | None = None
    loss: Callable[[PyTree], jax.Array] | None = None
    statistics: tuple[Statistic, ...] = ()
    weight_gradients: bool = False

    def run(
        self,
        params: PyTree,
        inputs: Sequence[jax.Array],
        key: jax.Array,
        frames: jax.Array | None,
    ) -> dict[str, jax.Array]:
        """Runs the program forward and backward once.

        Args:
            params: The parameters.
            inputs: The data inputs.
            key: Key of the cotangents at the output.
            frames: ``(2, n_values, 2)``: the frames in which the moments of values and
                of cotangents are taken; None for none.

        Returns:
            ``forward`` and ``backward``, each ``(n_values, 2 + n_outputs)``: readings;
            see `absent`. ``weight`` and ``bias``, each ``(n_layers,)``: second moments
            of the parameters as the layers use them, one for each execution of a layer;
            NaN where it did not run. ``weight_gradient``, if asked for: the same of the
            cotangents of the weights.
        """
        traced, runs = self.traced, layer_runs(self.traced)
        args = jax.tree.leaves((params, tuple(inputs)))
        avals = _all_avals(traced)
        blind = blind_values(traced)
        order = _Order.of(self.values)
        weights = _Order.of([(r.layer.weight, r.iteration) for r in runs])
        frame = None if frames is None else order.split(jnp.swapaxes(frames, 0, 1))
        others = len(outputs(self.statistics))
        run = Walk(
            traced.loops,
            frozenset(order.shapes),
            frozenset(weights.shapes)
            | {r.layer.bias for r in runs if r.layer.bias is not None},
            self.override,
            self.statistics,
        )

        sinks = {
            v: _sink(avals[v], n, others)
            for v, n in order.shapes.items()
            if v not in blind
        }
        for v in self._weights_differentiated(runs, blind):
            sinks[v] = _sink(avals[v], weights.shapes[v], 0)

        def tapped(sinks: Readings) -> tuple[jax.Array, Any]:
            outs, seen, squares = run.graph(traced.graph, args, sinks, frame)
            return self._loss(outs, key), (seen, squares)

        (_, (seen, squares)), sunk = jax.value_and_grad(tapped, has_aux=True)(sinks)
        entries = np.ones((len(self.values), 2 + others))
        entries[:, :2] = [[avals[v].size] for v, _ in self.values]
        out = {
            "forward": _over(order.join(seen, others), entries),
            "backward": _over(order.join(sunk, others), entries),
        }
        for name in ("weight", "bias"):
            at = [getattr(r.layer, name) for r in runs]
            total = [
                jnp.zeros((), jnp.float32) if v is None else squares[v][r.iteration]
                for v, r in zip(at, runs, strict=True)
            ]
            count = [1 if v is None else avals[v].size for v in at]
            out[name] = _over(jnp.stack(total), count)
        if self.weight_gradients:
            count = [avals[r.layer.weight].size for r in runs]
            gradients = _over(weights.join(sunk, 0)[:, 1], count)
            out["weight_gradient"] = jnp.where(gradients < 0, jnp.nan, gradients)
        return out

    def _weights_differentiated(
        self, runs: Sequence[LayerRun], blind: frozenset[int]
    ) -> list[int]:
        if not self.weight_gradients:
            return []
        lost = {r.layer.weight for r in runs if r.layer.root in blind}
        return [v for v in {r.layer.weight: None for r in runs} if v not in lost]

    def _loss(self, outs: list[Any], key: jax.Array) -> jax.Array:
        if self.loss is not None:
            return self.loss(jax.tree.unflatten(self.traced.output_tree, outs))
        total: Any = jnp.zeros((), jnp.float32)
        arrays = map(jnp.asarray, outs)
        arrays = [y for y in arrays if jnp.issubdtype(y.dtype, jnp.floating)]
        for y, sign in zip(arrays, signs(key, arrays), strict=True):
            kept = jnp.promote_types(y.dtype, jnp.float32)
            total += jnp.sum(sign * y, dtype=kept)
        return total


def _sink(aval: Any, shape: tuple[int, ...], others: int) -> Reading:
    """Returns zeros, whose gradient the readings of a value's cotangents become."""
    dtype = jnp.promote_types(aval.dtype, jnp.float32)
    return jax.tree.map(jnp.zeros_like, absent(shape, others, dtype))


def _over(sums: jax.Array, entries: Any) -> jax.Array:
    """Returns sums over entries as averages."""
    return sums / jnp.asarray(entries, sums.dtype)


def _all_avals(part: TracedModel | Loop) -> dict[int, Any]:
    found = dict(part.graph.avals)
    for loop in part.loops:
        found |= _all_avals(loop)
    return found


@dataclasses.dataclass(frozen=True)
class _Order:
    """The order of places, and that of arrays that hold a value's iterations.

    Attributes:
        shapes: Value -> number of iterations of each loop around it.
        rows: Where each place stands when those arrays are flattened and joined.
    """

    shapes: dict[int, tuple[int, ...]]
    rows: np.ndarray

    @classmethod
    def of(cls, places: Sequence[Place]) -> "_Order":
        shapes: dict[int, tuple[int, ...]] = {}
        for value, i in places:
            most = shapes.get(value, (0,) * len(i))
            shapes[value] = tuple(max(a, b + 1) for a, b in zip(most, i, strict=True))
        start, at = {}, 0
        for value, shape in shapes.items():
            start[value] = at
            at += math.prod(shape)
        rows = [
            start[v] + (int(np.ravel_multi_index(i, shapes[v])) if i else 0)
            for v, i in places
        ]
        return cls(shapes, np.array(rows))

    def join(self, readings: Readings, others: int) -> jax.Array:
        """Returns one row per place from the readings of values, absent where none is.

        A row is the sum, that of squares, and `others` more.
        """
        rows = [
            readings[v] if v in readings else absent(shape, others)
            for v, shape in self.shapes.items()
        ]
        columns = (
            jnp.concatenate([r.total.reshape(-1, 1) for r in rows]),
            jnp.concatenate([r.square.reshape(-1, 1) for r in rows]),
            jnp.concatenate([r.others.reshape(r.total.size, others) for r in rows]),
        )
        joined = jnp.concatenate(columns, axis=1)
        if np.array_equal(self.rows, np.arange(len(joined))):
            return joined
        return joined[self.rows]

    def split(self, rows: jax.Array) -> dict[int, jax.Array]:
        """Returns one array per value from one row per place."""
        total = sum(math.prod(shape) for shape in self.shapes.values())
        flat = jnp.zeros((total, *rows.shape[1:]), rows.dtype).at[self.rows].set(rows)
        out, at = {}, 0
        for value, shape in self.shapes.items():
            n = math.prod(shape)
            out[value] = flat[at : at + n].reshape(*shape, *rows.shape[1:])
            at += n
        return out
