"""Many draws of a network, measured in bounded memory.

One compiled program draws a network and measures it, and repeats that over the draws of
a chunk in a loop, so that memory is that of one network (or of ``batch_size`` of them
under `jax.vmap`) and what comes back is a few numbers per draw and tap. On CPU, as many
chunks as there are cores run side by side. Each draw's key is made of the ensemble's
key and the draw's number alone: how draws are cut into chunks, and who runs them when,
changes nothing but rounding.
"""

import collections
import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from layerwise import _jax
from layerwise.errors import OutOfMemoryError, message
from layerwise.measurement.compiling import compile_once
from layerwise.measurement.sharding import Layout
from layerwise.measurement.tapped_model import TappedModel
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
        forward: ``(n, n_values, 2 + n_outputs)``: mean and variance of values' entries,
            then the other statistics asked for; NaN where a value was not computed.
        backward: The same for cotangents.
        forward_read: ``(n, n_values)``: whether it was computed.
        backward_read: The same for cotangents.
        weight: ``(n, n_layers)`` second moments of the weights in use.
        bias: ``(n, n_layers)`` second moments of the biases in use.
        weight_gradient: ``(n, n_layers)`` second moments of the weights' cotangents, if
            asked for.
    """

    draws: np.ndarray
    forward: np.ndarray
    backward: np.ndarray
    forward_read: np.ndarray
    backward_read: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    weight_gradient: np.ndarray | None = None


def run(
    tapped: TappedModel,
    inputs: Sequence[jax.Array],
    draw: jax.tree_util.Partial | None,
    key: jax.Array,
    *,
    draws: int,
    given: PyTree = None,
    stacked: PyTree = None,
    chunk: int | None = None,
    batch_size: int = 1,
    progress: Progress | None = None,
    layout: Layout | None = None,
) -> Ensemble:
    """Measures the given network and `draws` others.

    Args:
        tapped: The program with its taps.
        inputs: The data inputs.
        draw: ``key -> params``, of `faster_draw`; not needed with `stacked`.
        key: Key of the ensemble.
        draws: Number of networks to draw.
        given: Parameters of one network to be measured as it is, or None.
        stacked: Parameters with a leading axis over draws, in place of `draw`.
        chunk: Draws per compiled call; None for at most 16.
        batch_size: Draws measured at once under `jax.vmap`.
        progress: Called after each chunk.
        layout: Where everything is, on more than one device.

    Returns:
        The statistics of all networks. On `KeyboardInterrupt`, of those measured so
        far, if there are any.
    """
    numbers = np.arange(0 if given is None else GIVEN, draws)
    chunk = chunk_size(len(numbers), chunk, layout)
    pieces = [numbers[i : i + chunk] for i in range(0, len(numbers), chunk)]
    program = Program(
        tapped, inputs, draw, given, stacked, key, chunk, batch_size, layout
    )
    start = np.tile([0.0, 1.0], (2, len(tapped.values), 1))
    parts: list[dict[str, np.ndarray]] = []
    done = 0
    count = workers() if layout is None else 1  # two calls' exchanges would mix
    with threads(count) as pool:
        running: collections.deque[tuple[Future, np.ndarray]] = collections.deque()
        # Two calls per worker are under way. The frames that a call ends with are those
        # that the first call not yet under way begins with: the same in every run.
        ahead = 2 * count
        frames = [start] * ahead
        try:
            for i, piece in enumerate(pieces[:ahead]):
                running.append((program.submit(pool, piece, frames[i]), frames[i]))
            for i, piece in enumerate(pieces):
                future, own = running.popleft()
                out, own = _in_frame(program, pool, future, piece, own)
                if i + ahead < len(pieces):
                    following = program.submit(pool, pieces[i + ahead], own)
                    running.append((following, own))
                parts.append(out)
                done += len(piece)
                if progress is not None:
                    progress(done, len(numbers))
        except KeyboardInterrupt:
            if not parts:
                raise
        except jax.errors.JaxRuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            raise _out_of_memory(error, program.together, inputs) from error
        finally:
            for future, _ in running:
                future.cancel()
    joined = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
    return Ensemble(draws=numbers[:done], **joined)


def workers() -> int:
    """Returns how many compiled calls run at the same time.

    XLA's CPU backend computes one network's layers on little more than one core; so as
    many networks as there are cores are measured side by side, by threads (the compiled
    calls do not hold Python's lock). Other devices have one queue.
    """
    if jax.default_backend() != "cpu":
        return 1
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def chunk_size(total: int, chunk: int | None, layout: Layout | None = None) -> int:
    """Returns the draws per call that cut `total` into equal calls, at most `chunk`.

    With `chunk` None, at most 16 for each group of devices, and there is a call for
    every worker if `total` allows.
    """
    groups = 1 if layout is None else layout.groups
    calls = -(-total // (chunk or 16 * groups))
    if chunk is None and layout is None:
        calls = min(-(-calls // workers()) * workers(), total)
    return -(-total // calls)


def _is_out_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    return "resource_exhausted" in text or "out of memory" in text


def _out_of_memory(
    error: Exception, together: int, inputs: Sequence[jax.Array]
) -> OutOfMemoryError:
    batch = max((x.shape[0] for x in inputs if x.ndim), default=1)
    fewer = f"{max(batch // 2, 1)} examples instead of {batch}"
    return OutOfMemoryError(
        message(
            f"{together} networks at once do not fit: {str(error).splitlines()[0]}",
            "Memory is that of the networks computed at once, with the activations "
            "that their backward pass reads; how many are drawn changes nothing.",
            f"Pass batch_size={together // 2}."
            if together > 1
            else f"Pass {fewer}, or a mesh with an axis for the batch or for the "
            "parameters; nn.remat in the model keeps fewer activations.",
        )
    )


@contextlib.contextmanager
def threads(count: int | None = None) -> Iterator[ThreadPoolExecutor]:
    """Yields threads, one for each worker; what they have not begun is dropped."""
    pool = ThreadPoolExecutor(count or workers(), thread_name_prefix="layerwise")
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class Program:
    """The compiled call: up to `chunk` networks drawn and measured one after the other.

    It is compiled in the thread that asks for it, whose settings (float64, matrix
    precision) it is to have, and runs in a thread of the pool.
    """

    def __init__(
        self,
        tapped: TappedModel,
        inputs: Sequence[jax.Array],
        draw: jax.tree_util.Partial | None,
        given: PyTree,
        stacked: PyTree,
        key: jax.Array,
        chunk: int,
        batch_size: int,
        layout: Layout | None = None,
    ) -> None:
        self._tapped = tapped
        self._layout = layout
        self._given = given
        self._groups = 1 if layout is None else layout.groups
        self._key_impl = None
        if layout is not None:
            if _jax.is_key_dtype(key.dtype):
                self._key_impl = jax.random.key_impl(key)
                key = jax.random.key_data(key)
            key = layout.put(np.asarray(key))
            inputs = layout.put_inputs(inputs)
            given, stacked = (layout.put_params(x) for x in (given, stacked))
            draw = jax.tree.map(layout.put, draw)
        self._data = (tuple(inputs), given, stacked, key, draw)
        own = -(-chunk // self._groups)
        self.together = min(batch_size, own)
        self._length = -(-own // self.together) * self.together
        self._compiled: dict[bool, Any] = {}

    def submit(
        self, pool: ThreadPoolExecutor, numbers: np.ndarray, frames: np.ndarray
    ) -> Future:
        """Starts a call; its result is the raw moments as float64 arrays."""
        call, args = self.compile(numbers, frames)
        return pool.submit(_fetch, call, args, self._deal(len(numbers))[1])

    def _deal(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Deals `count` draws to the groups of devices, the same number to each.

        Returns:
            For every row of the call, the number of the draw that it measures; and the
            row of every draw. Rows to spare repeat a draw.
        """
        groups = np.arange(self._groups)[:, None]
        each = -(-count // self._groups)
        draws = groups * each + np.arange(self._length) % each
        rows = groups * self._length + np.arange(each)
        return draws.ravel() % count, rows.ravel()[:count]

    def compile(self, numbers: np.ndarray, frames: np.ndarray) -> tuple[Any, tuple]:
        """Returns the compiled call, which is kept, and its arguments."""
        plain = not frames[..., 0].any() and bool((frames[..., 1] == 1).all())
        framed = None if plain else jnp.asarray(frames, jnp.float32)
        padded = numbers[self._deal(len(numbers))[0]].astype(np.int32)
        each: Any = np.int32(-(-len(numbers) // self._groups))
        layout, out = self._layout, None
        many: Callable[..., Any] = self._many
        if layout is not None:
            padded, each = layout.put(padded, layout.draws), layout.put(each)
            framed = None if framed is None else layout.put(np.asarray(framed))
            many = layout.spread(many, 2 + len(self._data))
            out = layout.sharding()  # the whole of it, for every process
        args = (padded, each, framed, *self._data)
        if plain not in self._compiled:
            program = jax.jit(many, out_shardings=out).lower(*args)
            self._compiled[plain] = compile_once(program)
        return self._compiled[plain], args

    def _many(
        self, numbers: jax.Array, count: jax.Array, frames: Any, *data: Any
    ) -> dict[str, jax.Array]:
        some = jax.jit(self._some)  # traced once: for its shapes, and in the loop

        def step(i: jax.Array, out: dict[str, jax.Array]) -> dict[str, jax.Array]:
            update = functools.partial(
                jax.lax.dynamic_update_slice_in_dim,
                start_index=i * self.together,
                axis=0,
            )
            return jax.tree.map(update, out, some(i, numbers, frames, *data))

        shapes = jax.eval_shape(some, np.int32(0), numbers, frames, *data)
        empty = {
            k: jnp.zeros((self._length, *v.shape[1:]), v.dtype)
            for k, v in shapes.items()
        }
        # The number of steps is an argument: a shorter last call is the same program.
        steps = -(-count // self.together)
        return jax.lax.fori_loop(np.int32(0), steps, step, empty)

    def _some(
        self, i: jax.Array, numbers: jax.Array, frames: Any, *data: Any
    ) -> dict[str, jax.Array]:
        """Measures the networks that are computed together in step `i`."""
        own = jax.lax.dynamic_slice_in_dim(numbers, i * self.together, self.together)
        one = lambda number: self._one(number, frames, *data)
        return jax.vmap(one)(own) if self.together > 1 else _lead(one(own[0]))

    def _one(
        self,
        number: jax.Array,
        frames: Any,
        inputs: Any,
        given: PyTree,
        stacked: PyTree,
        key: jax.Array,
        draw: Any,
    ) -> dict[str, jax.Array]:
        if self._key_impl is not None:
            key = jax.random.wrap_key_data(key, impl=self._key_impl)
        own = jax.random.fold_in(key, number + 1)
        for_params, for_cotangents = jax.random.split(own)

        def drawn() -> PyTree:
            if stacked is not None:
                return jax.tree.map(lambda x: x[jnp.maximum(number, 0)], stacked)
            params = draw(for_params)
            layout = self._layout
            return params if layout is None else layout.like(params, self._given)

        if given is None:
            params = drawn()
        elif draw is None and stacked is None:
            params = given
        else:
            params = jax.lax.cond(number == GIVEN, lambda: given, drawn)
        return self._tapped.run(params, inputs, for_cotangents, frames)


def _lead(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x[None], tree)


def _fetch(
    call: Callable[..., Any], args: tuple, rows: np.ndarray
) -> dict[str, np.ndarray]:
    out = jax.device_get(call(*args))
    return {k: np.asarray(v[rows], np.float64) for k, v in out.items()}


def _in_frame(
    program: Program,
    pool: ThreadPoolExecutor,
    future: Future,
    numbers: np.ndarray,
    frames: np.ndarray,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Waits for a call; repeats it in moved frames where a moment did not fit its own.

    Returns:
        Means and variances in place of framed moments, whether they were computed at
        all, and the frames that fitted.
    """
    for attempt in range(5):
        raw = future.result()
        moved = frames.copy()
        for i, side in enumerate(("forward", "backward")):
            mean, second = raw[side][..., 0], raw[side][..., 1]
            there = ~(second < 0)
            if side == "backward":
                there &= raw["forward_read"]
            moved[i] = _moved(frames[i], mean, np.where(there, second, 1.0))
            pivot, scale = frames[i, :, 0], frames[i, :, 1]
            with np.errstate(invalid="ignore"):  # inf - inf, reported as not finite
                variance = np.maximum(second - np.square(mean), 0.0) / scale**2
            framed = np.stack([mean / scale + pivot, variance], axis=-1)
            both = np.concatenate([framed, raw[side][..., 2:]], axis=-1)
            raw[side] = np.where(there[..., None], both, np.nan)
            raw[f"{side}_read"] = there
        if "weight_gradient" in raw:  # of a layer that did not run, there is none
            ran = ~np.isnan(raw["weight"]) | np.isnan(raw["weight_gradient"])
            raw["weight_gradient"] = np.where(ran, raw["weight_gradient"], np.nan)
        if attempt == 4 or np.array_equal(moved, frames):
            break
        frames = moved
        future = program.submit(pool, numbers, frames)
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
    moved = np.where(lost, pivot + typical / scale, pivot)
    frames[:, 0] = moved.astype(np.float32)  # as the device has it
    return frames
