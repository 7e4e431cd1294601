"""Random draws for many arrays at once.

One generator call for all of them compiles ten times faster than one call each, and a
compiler is where most of a first measurement's time goes. Outside of a trace what the
call made is cut up by NumPy, and nothing else is compiled.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from layerwise import _jax


_LARGEST = 2**28  # entries per generator call: 1 GiB of float32

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


Sampler = Callable[[jax.Array, tuple[int, ...]], jax.Array]
"""(key, shape) -> independent float32 entries of zero mean and unit variance."""


def _normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.normal(key, shape, jnp.float32)


def _truncated(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    # The variance of a normal that is cut off at two standard deviations.
    unit = jax.random.truncated_normal(key, -2.0, 2.0, shape, jnp.float32)
    return unit / 0.87962566103423978


def _uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    edge = math.sqrt(3.0)
    return jax.random.uniform(key, shape, jnp.float32, -edge, edge)


SAMPLERS: dict[str, Sampler] = {
    "normal": _normal,
    "truncated": _truncated,
    "uniform": _uniform,
}


def normal_leaves(
    key: jax.Array,
    likes: Mapping[str, Any],
    stddev: Mapping[str, Any],
    distribution: str = "normal",
) -> dict[str, jax.Array]:
    """Draws named arrays of independent zero-mean entries, normal if not said.

    Determined by the key and by the names, shapes and order of what is drawn; the same
    on any number of devices.

    Args:
        key: PRNG key.
        likes: Name -> anything with the shape and dtype wanted.
        stddev: Name -> standard deviation, a number or an array that broadcasts.
        distribution: One of `SAMPLERS`.

    Returns:
        Name -> array.
    """
    out: dict[str, jax.Array] = {}
    names = list(stddev)
    call = 0
    while names:
        group, total = [], 0
        while names and (not group or total + likes[names[0]].size <= _LARGEST):
            group.append(names.pop(0))
            total += likes[group[-1]].size
        unit = SAMPLERS[distribution](jax.random.fold_in(key, call), (total,))
        drawn: Any = unit if _jax.is_tracer(unit) else np.asarray(unit)
        ends = np.cumsum([likes[n].size for n in group])
        for name, end in zip(group, ends, strict=True):
            like = likes[name]
            part = drawn[end - like.size : end].reshape(like.shape)
            scaled = part * np.asarray(stddev[name], np.float32)
            out[name] = jnp.asarray(scaled.astype(like.dtype))
        call += 1
    return out


def signs(key: jax.Array, likes: Sequence[Any]) -> list[jax.Array]:
    """Draws arrays of independent entries +1 and -1, equally likely.

    By one hash of a counter that runs on from array to array, written out in a few
    operations: what JAX's own generator compiles to for this, a loop of each array's
    own, takes a quarter of the time in which a 20-layer network compiles. Every reader
    of an array would hash anew, but for the barrier.

    Args:
        key: PRNG key; its first 64 bits are used.
        likes: Anything with the shapes and dtypes wanted.

    Returns:
        One array for each of `likes`.
    """
    if _jax.is_key_dtype(key.dtype):
        key = jax.random.key_data(key)
    words, first, out = jnp.ravel(key), 0, []
    for like in likes:
        counter = jax.lax.iota(jnp.uint32, like.size) + np.uint32(first)
        bit = jax.lax.optimization_barrier(threefry(words, counter) & np.uint32(1))
        sign = jnp.where(bit == 1, -1, 1).astype(like.dtype)
        out.append(jnp.reshape(sign, like.shape))
        first += like.size
    return out


def threefry(key: jax.Array, counter: jax.Array) -> jax.Array:
    """Returns 32 bits per counter: Threefry-2x32-20 of (0, counter), its words xored.

    Args:
        key: Two words.
        counter: Any shape.

    References:
        [Salmon2011] Sec. 3.3.
    """
    schedule = (key[0], key[1], key[0] ^ key[1] ^ np.uint32(0x1BD11BDA))
    x, y = jnp.broadcast_to(schedule[0], counter.shape), counter + schedule[1]
    for i in range(5):
        for shift in _ROTATIONS[i % 2]:
            x = x + y
            left, right = np.uint32(shift), np.uint32(32 - shift)
            y = x ^ ((y << left) | (y >> right))
        x = x + schedule[(i + 1) % 3]
        y = y + schedule[(i + 2) % 3] + np.uint32(i + 1)
    return x ^ y
