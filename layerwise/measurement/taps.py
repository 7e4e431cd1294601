"""A program that reports the moments of its own values and of their cotangents.

A tap is the identity with a derivative rule: going forward it hands its value to two
reductions; coming back, it hands the cotangent to the same two reductions and returns
the result as the gradient of a scalar *sink* that the program does not otherwise use.
One forward and one backward pass then give every statistic. Nothing is stored, and as
parameters are constants of what is differentiated, no weight gradient is computed.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from layerwise.tracing import TracedModel
from layerwise.tracing.graph import Evaluator, evaluate
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


@dataclasses.dataclass(frozen=True, eq=False)
class TappedModel:
    """A traced model with taps on some of its values.

    Attributes:
        traced: The model.
        values: The values that are tapped, in order.
        override: Faster equivalents of some equations, or None.
        loss: Function of the model's output to differentiate, or None for independent
            cotangents of +1 and -1 at every entry of the output.
    """

    traced: TracedModel
    values: tuple[int, ...]
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
            moments of the parameters as the layers use them.
        """
        traced = self.traced
        slot = {v: i for i, v in enumerate(self.values)}
        args = jax.tree.leaves((params, tuple(inputs)))
        used = {y.weight for y in traced.layers}
        used |= {y.bias for y in traced.layers if y.bias is not None}

        def run(sinks: list[Moments]) -> tuple[jax.Array, Any]:
            seen: dict[int, Moments] = {}
            parameters: dict[int, jax.Array] = {}

            def on_value(value: int, x: Any) -> Any:
                if value in used:
                    parameters[value] = _second(x)
                i = slot.get(value)
                if i is None:
                    return x
                ahead, back = (None, None) if frames is None else frames[:, i]
                seen[i] = moments(jax.lax.stop_gradient(x), ahead)
                return tap(x, sinks[i], back)

            outputs = evaluate(
                traced.graph, args, override=self.override, on_value=on_value
            )
            forward = jnp.stack([seen[i] for i in range(len(self.values))])
            return self._loss(outputs, key), (forward, parameters)

        sinks = [jnp.zeros(2, jnp.float32) for _ in self.values]
        (_, (forward, parameters)), backward = jax.value_and_grad(run, has_aux=True)(
            sinks
        )
        zero = jnp.zeros((), jnp.float32)
        return {
            "forward": forward,
            "backward": jnp.stack(backward),
            "weight": jnp.stack([parameters[y.weight] for y in traced.layers]),
            "bias": jnp.stack(
                [zero if y.bias is None else parameters[y.bias] for y in traced.layers]
            ),
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
