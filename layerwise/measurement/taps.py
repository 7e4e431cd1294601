"""A program that reports the moments of its own values and of their cotangents.

A tap is the identity with a derivative rule: going forward it hands its value to two
reductions; coming back, it hands the cotangent to the same two reductions and returns
the result as the gradient of a scalar *sink* that the program does not otherwise use.
One forward and one backward pass then give every statistic. Nothing is stored, and as
parameters are constants of what is differentiated, no weight gradient is computed.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from layerwise import _jax
from layerwise.tracing import Loop, TracedModel
from layerwise.tracing.graph import Equation, Evaluator, Graph, evaluate
from layerwise.tracing.sites import layer_runs
from layerwise.types import PyTree


Moments = jax.Array
"""``(2,)`` float32: first and second moment of an array's entries, as a frame sees
them."""

Frame = jax.Array | None
"""``(2,)`` float32: the pivot that is subtracted and the scale that is multiplied by;
None for 0 and 1."""


def moments(x: jax.Array, frame: Frame) -> Moments:
    """Returns the first two moments of the entries of ``(x - pivot) * scale``.

    One pass, in float32. What that could lose, a frame keeps: digits of the variance
    where the mean is far larger (a pivot near the mean), and squares beyond float32's
    range (a scale). Few programs need one, and without it they compile in a third of
    the time.
    """
    x = x.astype(jnp.float32)
    if frame is not None:
        x = (x - frame[0]) * frame[1]
    return jnp.stack([jnp.mean(x), jnp.mean(jnp.square(x))])


@jax.custom_vjp
def tap(x: jax.Array, sink: Moments, frame: Frame) -> jax.Array:
    """Returns `x`; the gradient of `sink` is the moments of the cotangent of `x`."""
    return x


def _tap_forward(x: jax.Array, sink: Moments, frame: Frame) -> tuple:
    return x, frame


def _tap_backward(frame: Frame, cotangent: jax.Array) -> tuple:
    return cotangent, moments(cotangent, frame), jax.tree.map(jnp.zeros_like, frame)


tap.defvjp(_tap_forward, _tap_backward)


Place = tuple[int, tuple[int, ...]]
"""A value of the program and, for one in the body of a loop, the iteration."""


@dataclasses.dataclass(frozen=True, eq=False)
class TappedModel:
    """A traced model with taps on some of its values.

    Attributes:
        traced: The model.
        values: Where to tap, in order.
        override: Faster equivalents of some equations, or None.
        loss: Function of the model's output to differentiate, or None for independent
            cotangents of +1 and -1 at every entry of the output.
    """

    traced: TracedModel
    values: tuple[Place, ...]
    override: Evaluator | None = None
    loss: Callable[[PyTree], jax.Array] | None = None

    def statistics(
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
            ``forward`` and ``backward``, each ``(n_values, 2)``: moments as their
            frames see them. ``weight`` and ``bias``, each ``(n_layers,)``: second
            moments of the parameters as the layers use them, one for each execution
            of a layer.
        """
        traced = self.traced
        args = jax.tree.leaves((params, tuple(inputs)))
        runs = layer_runs(traced)
        used = {r.layer.weight for r in runs}
        used |= {r.layer.bias for r in runs if r.layer.bias is not None}
        run = _Run(traced.loops, frozenset(used), self.override)
        order = _Order.of(self.values)
        split = None if frames is None else order.split(jnp.swapaxes(frames, 0, 1))

        def tapped(sinks: dict[int, Moments]) -> tuple[jax.Array, Any]:
            outputs, seen, second = run.graph(traced.graph, args, sinks, split)
            return self._loss(outputs, key), (seen, second)

        (_, (seen, second)), sunk = jax.value_and_grad(tapped, has_aux=True)(
            {v: jnp.zeros((*n, 2), jnp.float32) for v, n in order.shapes.items()}
        )
        zero = jnp.zeros((), jnp.float32)
        weights = [second[r.layer.weight][r.iteration] for r in runs]
        biases = [
            zero if r.layer.bias is None else second[r.layer.bias][r.iteration]
            for r in runs
        ]
        return {
            "forward": order.join(seen),
            "backward": order.join(sunk),
            "weight": jnp.stack(weights),
            "bias": jnp.stack(biases),
        }

    def _loss(self, outputs: list[jax.Array], key: jax.Array) -> jax.Array:
        if self.loss is not None:
            return self.loss(jax.tree.unflatten(self.traced.output_tree, outputs))
        total = jnp.zeros((), jnp.float32)
        for i, y in enumerate(outputs):
            if jnp.issubdtype(y.dtype, jnp.floating):
                sign = jax.random.rademacher(
                    jax.random.fold_in(key, i), y.shape, y.dtype
                )
                total += jnp.sum(sign * y, dtype=jnp.float32)
        return total


def _second(x: jax.Array) -> jax.Array:
    return jnp.mean(jnp.square(jax.lax.stop_gradient(x).astype(jnp.float32)))


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

    def join(self, arrays: dict[int, jax.Array]) -> jax.Array:
        """Returns one row per place from one array per value."""
        flat = [arrays[v].reshape(-1, arrays[v].shape[-1]) for v in self.shapes]
        joined = jnp.concatenate(flat)
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


_Seen = dict[int, jax.Array]


@dataclasses.dataclass(frozen=True)
class _Run:
    """Evaluates a graph with taps, and the bodies of its loops with theirs.

    Attributes:
        loops: The scans to look into.
        used: Values that hold weights and biases, whose second moments are returned.
        override: Faster equivalents of some equations, or None.
    """

    loops: tuple[Loop, ...]
    used: frozenset[int]
    override: Evaluator | None

    def graph(
        self, graph: Graph, args: Sequence[Any], sinks: _Seen, frames: _Seen | None
    ) -> tuple[list[Any], _Seen, _Seen]:
        """Returns the outputs, the moments of tapped values and those of parameters."""
        seen: _Seen = {}
        second: _Seen = {}
        loops = {loop.equation.outputs[0]: loop for loop in self.loops}

        def on_value(value: int, x: Any) -> Any:
            if value in self.used:
                second[value] = _second(x)
            if value not in sinks:
                return x
            ahead, back = (None, None) if frames is None else frames[value]
            seen[value] = moments(jax.lax.stop_gradient(x), ahead)
            return tap(x, sinks[value], back)

        def override(equation: Equation, operands: list[Any]) -> list[Any] | None:
            loop = loops.get(equation.outputs[0]) if equation.outputs else None
            if loop is None:
                return (
                    None if self.override is None else self.override(equation, operands)
                )
            outs, inner, parameters = self.scan(loop, operands, sinks, frames)
            seen.update(inner)
            second.update(parameters)
            return outs

        outs = evaluate(graph, args, override=override, on_value=on_value)
        return outs, seen, second

    def scan(
        self, loop: Loop, operands: list[Any], sinks: _Seen, frames: _Seen | None
    ) -> tuple[list[Any], _Seen, _Seen]:
        """Runs a scan with taps in its body.

        Sinks and frames go in by iteration, and moments come out by iteration.
        """
        p = loop.equation.params
        first, carries = _jax.scan_counts(loop.equation.eqn)
        after = first + carries
        inside = {v for g in loop.graphs() for v in g.avals} & set(sinks)
        inner = dataclasses.replace(self, loops=loop.loops)
        own = {v: sinks[v] for v in inside}
        framed = None if frames is None else {v: frames[v] for v in inside}

        def body(carry: list[Any], x: Any) -> tuple[list[Any], Any]:
            slices, sinks, frames = x
            args = [*operands[:first], *carry, *slices]
            outs, seen, second = inner.graph(loop.graph, args, sinks, frames)
            return outs[:carries], (outs[carries:], seen, second)

        carry, (ys, seen, second) = jax.lax.scan(
            body,
            operands[first:after],
            (operands[after:], own, framed),
            length=p["length"],
            reverse=p["reverse"],
            unroll=p["unroll"],
        )
        return [*carry, *ys], seen, second
