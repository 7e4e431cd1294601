r"""Orthogonal weights, dense and convolutional, and those that begin as the identity.

A matrix with orthonormal rows or columns keeps lengths exactly, not only on average:
with one on every layer of a deep linear network all singular values of the whole are 1.
A convolution of several groups is one such matrix for each of them.
A convolution does so if its centre tap is such a matrix and all others are zero
(*delta-orthogonal*); zero padding then loses nothing either.

References:
    [Saxe2014] orthogonal; [Xiao2018] delta-orthogonal, with which 10,000 layers train.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from layerwise.errors import UnsupportedModelError, message
from layerwise.initializers.registry import Assignment, Problem, Scheme, register
from layerwise.initializers.weights import Weight, weights
from layerwise.types import Initializer


def orthogonal(gain: float = 1.0, *, column_axis: int = -1) -> Initializer:
    """Returns an initializer with orthonormal rows or columns, whichever are fewer.

    Equal to ``jax.nn.initializers.orthogonal(gain, column_axis)``.

    Args:
        gain: What the matrix is multiplied by: `layerwise.gain(phi)` behind phi.
        column_axis: Axis of the outputs; all others together are the inputs.

    Example:
        >>> w = orthogonal()(jax.random.key(0), (8, 4), jnp.float32)
        >>> bool(jnp.allclose(w.T @ w, jnp.eye(4), atol=1e-5))
        True

    References:
        [Saxe2014].
    """
    return jax.nn.initializers.orthogonal(gain, column_axis)


def delta_orthogonal(gain: float = 1.0, *, column_axis: int = -1) -> Initializer:
    """Returns an initializer for convolutions: orthogonal centre tap, zero elsewhere.

    Equal to ``jax.nn.initializers.delta_orthogonal(gain, column_axis)``, which needs at
    least as many outputs as inputs.

    Args:
        gain: What the centre tap is multiplied by.
        column_axis: Axis of the outputs.

    References:
        [Xiao2018] algorithm 2.
    """
    return jax.nn.initializers.delta_orthogonal(gain, column_axis)


def identity(gain: float = 1.0) -> Initializer:
    """Returns an initializer that hands each input to the output of its number.

    The kernel's last two axes are inputs and outputs; of a convolution's taps the
    centre one is the identity and the others are zero. Outputs beyond the number of
    inputs repeat them from the first, so that no output is dead.

    Args:
        gain: What it is multiplied by.

    Example:
        >>> identity()(jax.random.key(0), (2, 4)).tolist()
        [[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0]]

    References:
        [Le2015] for recurrent weights.
    """

    def init(
        key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32
    ) -> jax.Array:
        *taps, n_in, n_out = shape
        eye = jnp.asarray(gain * _identity(n_in, n_out), dtype)
        centre = tuple((n - 1) // 2 for n in taps)
        return jnp.zeros(shape, dtype).at[centre].set(eye)

    return init


def _identity(n_in: int, n_out: int) -> np.ndarray:
    return (np.arange(n_in)[:, None] == np.arange(n_out) % n_in).astype(float)


def semi_orthogonal(
    key: jax.Array, shape: Sequence[int], outs: Sequence[int], batched: Sequence[int]
) -> jax.Array:
    """Returns a kernel that is orthogonal along an operation's axes, in float32.

    It is scaled so that the second moment of its entries is 1.

    Args:
        key: PRNG key.
        shape: Shape of the kernel.
        outs: Axes of the outputs.
        batched: Axes along which independent kernels are stacked.
    """
    ins = [a for a in range(len(shape)) if a not in (*outs, *batched)]
    order = [*batched, *ins, *outs]
    n_in, n_out, stacked = (
        math.prod(shape[a] for a in axes) for axes in (ins, outs, batched)
    )
    tall = (max(n_in, n_out), min(n_in, n_out))
    kernel = jax.random.normal(key, (stacked, *tall), jnp.float32)
    kernel = jax.lax.map(_orthonormal, kernel) * math.sqrt(tall[0])
    if n_in < n_out:
        kernel = jnp.swapaxes(kernel, 1, 2)
    kernel = kernel.reshape([shape[a] for a in order])
    return jnp.transpose(kernel, tuple(np.argsort(order).tolist()))


@jax.custom_batching.sequential_vmap  # a batched QR does not return on few cores
def _orthonormal(normal: jax.Array) -> jax.Array:
    """Returns the columns of a tall matrix made orthonormal, uniformly distributed."""
    q, r = jnp.linalg.qr(normal)
    return q * jnp.where(jnp.diagonal(r) < 0.0, -1.0, 1.0)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def structured(
    key: jax.Array, shape: Sequence[int], weight: Weight, kind: str
) -> jax.Array:
    """Returns a leaf's unit kernel: its entries have a second moment of 1.

    Args:
        key: PRNG key.
        shape: Shape of the leaf; axes before those of the weight stack kernels.
        weight: The operation that uses it.
        kind: "orthogonal", "delta_orthogonal" or "identity".
    """
    extra = len(shape) - len(weight.shape)
    if extra < 0 or not weight.direct:
        weight = dataclasses.replace(
            weight, outs=(len(shape) - 1,), batched=(), spatial=(), groups=1
        )
        extra = 0
    outs, spatial, batched = (
        tuple(a + extra for a in axes)
        for axes in (weight.outs, weight.spatial, weight.batched)
    )
    if weight.groups > 1:
        apart = _apart(weight)
        cut = (*shape[:extra], *apart.shape)
        return structured(key, cut, apart, kind).reshape(shape)
    lead = (*range(extra), *batched)
    if kind == "orthogonal":
        return semi_orthogonal(key, shape, outs, lead)
    ins = [a for a in range(len(shape)) if a not in (*outs, *spatial, *lead)]
    sizes = [shape[a] for a in lead]
    n_in, n_out = (math.prod(shape[a] for a in axes) for axes in (ins, outs))
    at = len(sizes)
    if kind == "identity":
        matrix = jnp.asarray(_identity(n_in, n_out) * math.sqrt(n_in), jnp.float32)
        matrix = jnp.broadcast_to(matrix, (*sizes, n_in, n_out))
    else:
        like = (*sizes, n_in, n_out)
        matrix = semi_orthogonal(key, like, (at + 1,), tuple(range(at)))
    window = [shape[a] for a in spatial]
    kernel = jnp.zeros([*sizes, *window, n_in, n_out])
    centre = tuple((n - 1) // 2 for n in window)
    kernel = kernel.at[(*(slice(None),) * at, *centre)].set(matrix)
    order = [*lead, *spatial, *ins, *outs]
    kernel = kernel.reshape([shape[a] for a in order]) * math.sqrt(math.prod(window))
    return jnp.transpose(kernel, tuple(np.argsort(order).tolist()))


def _apart(weight: Weight) -> Weight:
    """Returns a grouped convolution's weight, its groups an axis of their own."""
    (out,) = weight.outs
    each = weight.shape[out] // weight.groups
    return dataclasses.replace(
        weight,
        shape=(*weight.shape[:out], weight.groups, each, *weight.shape[out + 1 :]),
        outs=(out + 1,),
        batched=(out,),
        spatial=tuple(a + (a > out) for a in weight.spatial),
        groups=1,
    )


def _solve(kind: str, problem: Problem) -> Assignment:
    gain = float(problem.options.get("gain") or 1.0)
    found: dict[str, float] = {}
    for w in weights(problem.traced):
        n_out = math.prod(w.shape[a] for a in w.outs) // w.groups
        taps = math.prod(w.shape[a] for a in w.spatial)
        n_in = w.fan_in / taps
        if kind != "orthogonal":
            _check(kind, w, n_in, n_out)
        if w.lookup:
            variance = 1.0
        elif kind == "orthogonal":
            variance = 1.0 / max(w.fan_in, n_out)
        elif kind == "delta_orthogonal":
            variance = 1.0 / (max(n_in, n_out) * taps)
        else:
            variance = 1.0 / w.fan_in
        found.setdefault(w.path, gain**2 * variance)
    return Assignment(found, distribution=kind)


def _check(kind: str, w: Weight, n_in: float, n_out: int) -> None:
    if kind == "delta_orthogonal" and w.spatial and n_in > n_out:
        raise UnsupportedModelError(
            message(
                f"{w.path} has {n_in:g} inputs and {n_out} outputs.",
                "A delta-orthogonal kernel keeps lengths only with at least as many "
                "outputs.",
                "Use scheme='orthogonal', or widen the layer.",
            )
        )


_SHARED = {
    "needs": "a shape",
    "options": ("gain",),
    "distributions": (),
}
register(
    Scheme(
        "orthogonal",
        lambda p: _solve("orthogonal", p),
        preserves="lengths, both directions, no activation",
        supports=("dense",),
        source="[Saxe2014]",
        **_SHARED,
    )
)
register(
    Scheme(
        "delta_orthogonal",
        lambda p: _solve("delta_orthogonal", p),
        preserves="lengths, both directions, odd activations at small signals",
        supports=("dense", "other activations", "padding"),
        source="[Xiao2018]",
        **_SHARED,
    )
)
register(
    Scheme(
        "identity",
        lambda p: _solve("identity", p),
        preserves="the signal itself",
        supports=("dense", "padding"),
        source="[Le2015]",
        **_SHARED,
    )
)
