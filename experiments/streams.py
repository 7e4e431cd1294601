"""Second moments along a stack of random blocks, in both directions, by simulation."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


Block = Callable[[jax.Array, jax.Array], jax.Array]


class Streams(NamedTuple):
    """Second moments at the ends of the blocks 0 ... L, one row per network.

    Attributes:
        q: E[z_l^2], `(draws, L + 1)`.
        r: E[(dE/dz_l)^2], of cotangents of unit second moment at the last block.
    """

    q: np.ndarray
    r: np.ndarray


def streams(
    block: Block, depth: int, draws: int, *, width: int, batch: int = 4, seed: int = 0
) -> Streams:
    """Returns what `depth` random blocks make of normal inputs and random cotangents.

    Args:
        block: `(key, z) -> z`, one random block, `(batch, width)` in and out.
        depth: Blocks.
        draws: Networks.
        width: Features.
        batch: Examples.
        seed: Of the keys.
    """

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        start, end, keys = jax.random.split(key, 3)
        z = jax.random.normal(start, (batch, width))

        def run(shifts: jax.Array) -> tuple[jax.Array, jax.Array]:
            def step(z: jax.Array, given: tuple) -> tuple[jax.Array, jax.Array]:
                z = z + given[1]  # zero: its cotangent is that of z
                return block(given[0], z), jnp.square(z).mean()

            out, q = jax.lax.scan(step, z, (jax.random.split(keys, depth), shifts))
            return out, jnp.append(q, jnp.square(out).mean())

        shifts = jnp.zeros((depth, batch, width))
        out, pull, q = jax.vjp(run, shifts, has_aux=True)
        g = jax.random.rademacher(end, out.shape, out.dtype)
        r = jnp.square(pull(g)[0]).mean(axis=(1, 2))
        return q, jnp.append(r, 1.0)

    keys = jax.random.split(jax.random.key(seed), draws)
    q, r = jax.jit(lambda keys: jax.lax.map(one, keys))(keys)
    return Streams(np.asarray(q, np.float64), np.asarray(r, np.float64))


def normal_weight(key: jax.Array, s: float, width: int) -> jax.Array:
    """Returns a square weight of variance ``s / width``."""
    return jax.random.normal(key, (width, width)) * np.sqrt(s / width)


def normalize_batch(z: jax.Array) -> jax.Array:
    """Returns z with zero mean and unit variance over the batch, feature by feature."""
    z = z - z.mean(0)
    return z * jax.lax.rsqrt(jnp.square(z).mean(0) + 1e-12)
