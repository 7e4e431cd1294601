"""Many draws of a network, measured in bounded memory.

One compiled program draws a network and measures it; `jax.lax.map` repeats that over
the keys of a chunk, so that memory is that of one network (or of ``batch_size`` of them
under `jax.vmap`) and what comes back is a few numbers per draw and tap. Each draw's key
is made of the ensemble's key and the draw's number alone: how draws are cut into chunks
changes nothing but rounding.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from layerwise.measurement.taps import TappedModel
from layerwise.types import PyTree


Progress = Callable[[int, int], None]
"""Called with (draws done, draws in all) after each chunk."""

GIVEN = -1
"""Number of the network whose parameters were given."""

# A second moment outside of these could have lost digits or range in float32: the
# frame's scale moves by a power of two until it is inside.
_LOW, _HIGH = 1e-26, 1e30
_SHIFT = 2.0**40

# A variance below this share of the squared mean has lost digits: the frame's
# pivot moves to the mean.
_CANCELLED = 1e-2


@dataclasses.dataclass(frozen=True, eq=False)
class Ensemble:
    """Raw statistics of an ensemble, in float64.

    Attributes:
        draws: Numbers of the networks measured; `GIVEN` for the given one.
        forward: ``(n, n_values, 2)``: mean and variance of values' entries.
        backward: ``(n, n_values, 2)``: the same for cotangents.
        weight: ``(n, n_layers)`` second moments of the weights in use.
        bias: ``(n, n_layers)`` second moments of the biases in use.
    """

    draws: np.ndarray
    forward: np.ndarray
    backward: np.ndarray
    weight: np.ndarray
    bias: np.ndarray


def run(
    tapped: TappedModel,
    inputs: Sequence[jax.Array],
    draw: Callable[[jax.Array], PyTree] | None,
    key: jax.Array,
    *,
    draws: int,
    given: PyTree = None,
    stacked: PyTree = None,
    chunk: int | None = None,
    batch_size: int = 1,
    progress: Progress | None = None,
) -> Ensemble:
    """Measures the given network and `draws` others.

    Args:
        tapped: The program with its taps.
        inputs: The data inputs.
        draw: ``key -> params``; not needed with `stacked`.
        key: Key of the ensemble.
        draws: Number of networks to draw.
        given: Parameters of one network to be measured as it is, or None.
        stacked: Parameters with a leading axis over draws, in place of `draw`.
        chunk: Draws per compiled call; None for at most 16.
        batch_size: Draws measured at once under `jax.vmap`.
        progress: Called after each chunk.

    Returns:
        The statistics of all networks. On `KeyboardInterrupt`, of those measured so
        far, if there are any.
    """
    numbers = np.arange(0 if given is None else GIVEN, draws)
    chunk = chunk_size(len(numbers), chunk)
    program = _program(tapped, inputs, draw, given, key, batch_size)
    frames = np.tile([0.0, 1.0], (2, len(tapped.values), 1))
    parts: list[dict[str, np.ndarray]] = []
    done = 0
    try:
        while done < len(numbers):
            some = numbers[done : done + chunk]
            padded = np.resize(some, chunk) if len(some) < chunk else some
            rows = None
            if stacked is not None:
                rows = jax.tree.map(lambda x, i=padded: x[np.maximum(i, 0)], stacked)
            out, frames = _in_frame(program, padded, rows, frames)
            parts.append({k: v[: len(some)] for k, v in out.items()})
            done += len(some)
            if progress is not None:
                progress(done, len(numbers))
    except KeyboardInterrupt:
        if not parts:
            raise
    joined = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
    return Ensemble(draws=numbers[:done], **joined)


def chunk_size(total: int, chunk: int | None) -> int:
    """Returns the draws per call that cut `total` into equal calls, at most `chunk`."""
    calls = -(-total // (chunk or 16))
    return -(-total // calls)


def _program(
    tapped: TappedModel,
    inputs: Sequence[jax.Array],
    draw: Callable[[jax.Array], PyTree] | None,
    given: PyTree,
    key: jax.Array,
    batch_size: int,
) -> Callable[..., dict[str, jax.Array]]:
    def one(
        number: jax.Array, rows: PyTree, inputs: Any, given: PyTree, frames: Any
    ) -> dict[str, jax.Array]:
        own = jax.random.fold_in(key, number + 1)
        for_params, for_cotangents = jax.random.split(own)

        def drawn() -> PyTree:
            return draw(for_params) if rows is None else rows  # type: ignore[misc]

        if given is None:
            params = drawn()
        elif draw is None and rows is None:
            params = given
        else:
            params = jax.lax.cond(number == GIVEN, lambda: given, drawn)
        return tapped.statistics(params, inputs, for_cotangents, frames)

    @jax.jit
    def many(
        numbers: jax.Array, rows: PyTree, inputs: Any, given: PyTree, frames: Any
    ) -> dict[str, jax.Array]:
        return jax.lax.map(
            lambda x: one(x[0], x[1], inputs, given, frames),
            (numbers, rows),
            batch_size=batch_size if batch_size > 1 else None,
        )

    def program(
        numbers: np.ndarray, rows: PyTree, frames: np.ndarray
    ) -> dict[str, jax.Array]:
        plain = not frames[..., 0].any() and (frames[..., 1] == 1).all()
        framed = None if plain else jnp.asarray(frames, jnp.float32)
        return many(jnp.asarray(numbers), rows, tuple(inputs), given, framed)

    return program


def _in_frame(
    program: Callable[..., dict[str, jax.Array]],
    numbers: np.ndarray,
    rows: PyTree,
    frames: np.ndarray,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Runs a chunk, again in moved frames where a moment did not fit its frame.

    Returns:
        Means and variances in place of framed moments, and the frames that fitted, with
        which the next chunk begins.
    """
    for attempt in range(5):
        raw = {
            k: np.asarray(v, np.float64)
            for k, v in program(numbers, rows, frames).items()
        }
        moved = frames.copy()
        for i, side in enumerate(("forward", "backward")):
            mean, second = raw[side][..., 0], raw[side][..., 1]
            moved[i] = _moved(frames[i], mean, second)
            pivot, scale = frames[i, :, 0], frames[i, :, 1]
            with np.errstate(invalid="ignore"):  # inf - inf, reported as not finite
                variance = np.maximum(second - np.square(mean), 0.0) / scale**2
            raw[side] = np.stack([mean / scale + pivot, variance], axis=-1)
        if attempt == 4 or np.array_equal(moved, frames):
            break
        frames = moved
    return raw, frames


def _moved(frames: np.ndarray, mean: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns the frames, ``(n_values, 2)``, in which these moments would fit."""
    frames = frames.copy()
    pivot, scale = frames[:, 0], frames[:, 1]
    low, high = second.min(axis=0), np.nan_to_num(second, nan=np.inf).max(axis=0)
    too_high = high > _HIGH
    too_low = (low < _LOW) & (high < _HIGH / _SHIFT**2)
    factor = np.where(too_high, 1 / _SHIFT, np.where(too_low, _SHIFT, 1.0))
    frames[:, 1] = np.clip(scale * factor, _SHIFT**-2, _SHIFT**2)
    typical = mean[len(mean) // 2]
    with np.errstate(invalid="ignore"):
        lost = second - np.square(mean) < _CANCELLED * np.square(mean)
    lost = lost.any(axis=0) & (factor == 1) & np.isfinite(typical) & (typical != 0)
    frames[:, 0] = np.where(lost, pivot + typical / scale, pivot)
    return frames
