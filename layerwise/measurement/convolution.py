"""Convolutions as matrix products, where XLA's CPU backend is slower than those.

XLA's CPU convolution reaches the speed of a matrix product where it recognizes the
layout of its kernel. It does not recognize the transposed, flipped kernel of an input
gradient inside a loop (ten times slower), nor a kernel larger than the map that it
slides over (a hundred times slower), and it loses a third of its speed where the kernel
no longer fits the cache.

Two identities give the same numbers, up to the order of additions:

* the output is ``patches(x) @ w``, where `patches` lays what the kernel sees side by
  side (*im2col*);
* the input gradient is the transpose of that: ``g @ w.T``, each patch added back to
  where it was cut from (*col2im*). A weight gradient is not needed for it.

Where the kernel is small and moves by one, the input gradient stays a convolution,
with the transposed kernel written out in the layout that XLA recognizes anywhere: as
fast, in less memory, and compiled in less time.

Which form is used depends on shapes alone; the limits below were set by timing them on
one core (AVX-512, jaxlib 0.10.2) on the layers of F34, ResNet-50 and a 20-layer network
of width 64.
"""

import dataclasses
import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from layerwise.tracing.graph import Equation


# Kernels of at least this many weights: patches times kernel beats XLA's convolution.
_LARGE_KERNEL = 1_000_000
# Input gradients with at least this many input channels: products beat a convolution.
_MANY_CHANNELS = 256
# Strided input gradients of at most this many channels: phases beat products, whose
# patches would be added back in runs of so few numbers.
_FEW_CHANNELS = 16
# Patches beyond this many bytes are not worth their memory.
_MAX_PATCH_BYTES = 64 * 2**20

_DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Geometry:
    """A convolution in the layout (batch, *space, channel), (*space, in, out).

    Attributes:
        batch: Number of examples.
        space: Sizes of the input map.
        kernel: Sizes of the kernel.
        out: Sizes of the output map.
        strides: Steps of the kernel over the map.
        dilation: Steps between the entries of a patch.
        padding: ``(low, high)`` per axis; may be negative.
        channels_in: Input channels.
        channels_out: Output channels.
        dtype: Of the output.
        precision: Of the products, as the convolution had it.
    """

    batch: int
    space: tuple[int, ...]
    kernel: tuple[int, ...]
    out: tuple[int, ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    channels_in: int
    channels_out: int
    dtype: Any
    precision: Any

    @property
    def positions(self) -> tuple[tuple[int, ...], ...]:
        """The kernel's positions, in the order of its entries."""
        return tuple(itertools.product(*map(range, self.kernel)))

    @property
    def patch_bytes(self) -> int:
        """Size of all patches in float32."""
        return 4 * self.batch * math.prod(self.out + self.kernel) * self.channels_in

    @property
    def is_dense(self) -> bool:
        """Whether it is a matrix product: one kernel position, no padding."""
        flat = all(p == (0, 0) for p in self.padding)
        return math.prod(self.kernel) == 1 and flat

    def forward_by_product(self) -> bool:
        """Returns whether patches times kernel is the faster forward form."""
        if self.is_dense:
            return True
        if self.patch_bytes > _MAX_PATCH_BYTES:
            return False
        weights = math.prod(self.kernel) * self.channels_in * self.channels_out
        return weights >= _LARGE_KERNEL or self._overhangs(self.space)

    def backward_by_product(self) -> bool:
        """Returns whether the input gradient is fastest as products."""
        if self.is_dense:
            return True
        if self.patch_bytes > _MAX_PATCH_BYTES:
            return False
        return (
            self.channels_in >= _MANY_CHANNELS
            or any(s > 1 for s in self.strides)
            or self._overhangs(self.out)
        )

    def backward_by_phases(self) -> bool:
        """Returns whether the input gradient is fastest phase by phase."""
        return (
            any(s > 1 for s in self.strides)
            and all(d == 1 for d in self.dilation)
            and self.channels_in <= _FEW_CHANNELS
            and not self.is_dense
        )

    def _overhangs(self, space: tuple[int, ...]) -> bool:
        """Returns whether the kernel is larger than a map."""
        extent = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation)]
        return any(h < k for h, k in zip(space, extent, strict=True))


def convolution(equation: Equation, operands: list[Any]) -> list[Any] | None:
    """Returns the equation's output by its faster form, or None where there is none.

    Args:
        equation: Of the primitive ``conv_general_dilated``.
        operands: Input and kernel.
    """
    x, w = operands
    params = equation.params
    spec = params["dimension_numbers"]
    plain = (
        params["feature_group_count"] == 1
        and params["batch_group_count"] == 1
        and all(d == 1 for d in params["lhs_dilation"])
        and x.dtype == w.dtype
        and str(x.dtype) in _DTYPES
    )
    if not plain or 0 in x.shape or 0 in w.shape or x.ndim < 3:
        return None
    x = jnp.transpose(x, (spec.lhs_spec[0], *spec.lhs_spec[2:], spec.lhs_spec[1]))
    w = jnp.transpose(w, (*spec.rhs_spec[2:], spec.rhs_spec[1], spec.rhs_spec[0]))
    out: Any = equation.eqn.outvars[0].aval
    order = (spec.out_spec[0], *spec.out_spec[2:], spec.out_spec[1])
    if 0 in out.shape:
        return None
    geometry = Geometry(
        batch=x.shape[0],
        space=x.shape[1:-1],
        kernel=w.shape[:-2],
        out=tuple(out.shape[i] for i in order[1:-1]),
        strides=tuple(params["window_strides"]),
        dilation=tuple(params["rhs_dilation"]),
        padding=tuple((int(a), int(b)) for a, b in params["padding"]),
        channels_in=w.shape[-2],
        channels_out=w.shape[-1],
        dtype=out.dtype,
        precision=params["precision"],
    )
    y = _convolve(geometry, x, w)
    return [jnp.transpose(y, tuple(order.index(i) for i in range(y.ndim)))]


def patches(x: jax.Array, geometry: Geometry) -> jax.Array:
    """Returns the input's patches, ``(batch * prod(out), kernel * channels_in)``."""
    pads = [(0, 0, 0), *((lo, hi, 0) for lo, hi in geometry.padding), (0, 0, 0)]
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), pads)
    columns = []
    for position in geometry.positions:
        start = [i * d for i, d in zip(position, geometry.dilation, strict=True)]
        stop = [
            a + (n - 1) * s + 1
            for a, n, s in zip(start, geometry.out, geometry.strides, strict=True)
        ]
        columns.append(
            jax.lax.slice(
                x,
                (0, *start, 0),
                (x.shape[0], *stop, x.shape[-1]),
                (1, *geometry.strides, 1),
            )
        )
    both = columns[0] if len(columns) == 1 else jnp.concatenate(columns, axis=-1)
    return both.reshape(-1, both.shape[-1])


def scatter_patches(parts: list[jax.Array], geometry: Geometry) -> jax.Array:
    """Returns the input map that the patches add up to: the transpose of `patches`.

    Args:
        parts: Per kernel position ``(batch, *out, channels_in)``.
        geometry: The convolution.
    """
    total = None
    for position, part in zip(geometry.positions, parts, strict=True):
        pads = [(0, 0, 0)]
        for axis, i in enumerate(position):
            stride = geometry.strides[axis]
            low = i * geometry.dilation[axis] - geometry.padding[axis][0]
            covered = (geometry.out[axis] - 1) * stride + 1
            pads.append((low, geometry.space[axis] - low - covered, stride - 1))
        pads.append((0, 0, 0))
        moved = jax.lax.pad(part, jnp.zeros((), part.dtype), pads)
        total = moved if total is None else total + moved
    assert total is not None
    return total


def input_gradient(g: jax.Array, w: jax.Array, geometry: Geometry) -> jax.Array:
    """Returns the gradient of the input, of the dtype of `w`.

    Args:
        g: Cotangent of the output, ``(batch, *out, channels_out)``.
        w: The kernel, ``(*kernel, channels_in, channels_out)``.
        geometry: The convolution.
    """
    if geometry.backward_by_phases():
        return _phases(g, w, geometry)
    if not geometry.backward_by_product():
        return _transposed(g, w, geometry)
    every = jnp.matmul(
        g.reshape(-1, geometry.channels_out).astype(w.dtype),
        w.reshape(-1, geometry.channels_out).T,
        precision=geometry.precision,
        preferred_element_type=jnp.float32,
    )
    shape = (geometry.batch, *geometry.out, -1, geometry.channels_in)
    every = every.reshape(shape)
    parts = [every[..., i, :] for i in range(every.shape[-2])]
    return scatter_patches(parts, geometry).astype(w.dtype)


def _phases(g: jax.Array, w: jax.Array, geometry: Geometry) -> jax.Array:
    """Returns the input gradient, the positions of each phase of the stride together.

    Padded input position ``s * Q + r`` meets kernel entries ``s * j + r`` alone, in the
    outputs ``Q - j``: for each r a convolution that moves by one, with channels of
    their own for all of them in one.
    """
    space = tuple(range(len(geometry.kernel)))
    counts = [-(-k // s) for k, s in zip(geometry.kernel, geometry.strides)]
    pairs = list(zip(counts, geometry.strides))
    more = [(0, j * s - k) for (j, s), k in zip(pairs, geometry.kernel)]
    w = jnp.pad(w, [*more, (0, 0), (0, 0)])
    w = w.reshape(*(n for pair in pairs for n in pair), *w.shape[-2:])
    rank = len(space)
    # (j_1, s_1, j_2, s_2, ..., in, out) -> (*j, out, *s, in)
    w = w.transpose(
        *range(0, 2 * rank, 2), 2 * rank + 1, *range(1, 2 * rank, 2), 2 * rank
    )
    w = w.reshape(*counts, geometry.channels_out, -1)
    y = jax.lax.conv_general_dilated(
        g.astype(w.dtype),
        jnp.flip(w, space),
        (1,) * rank,
        [(j - 1, j - 1) for j in counts],
        dimension_numbers=_layout(rank),
        precision=geometry.precision,
    )
    met = y.shape[1:-1]
    y = y.reshape(geometry.batch, *met, *geometry.strides, geometry.channels_in)
    order = [a for i in space for a in (1 + i, 1 + rank + i)]
    y = y.transpose(0, *order, 2 * rank + 1)
    whole = [q * s for q, s in zip(met, geometry.strides)]
    y = y.reshape(geometry.batch, *whole, geometry.channels_in)
    cuts = [
        (-low, size + low - n, 0)
        for (low, _), size, n in zip(geometry.padding, geometry.space, whole)
    ]
    zero = jnp.zeros((), y.dtype)
    return jax.lax.pad(y, zero, [(0, 0, 0), *cuts, (0, 0, 0)])


def _transposed(g: jax.Array, w: jax.Array, geometry: Geometry) -> jax.Array:
    pads = []
    for axis, k in enumerate(geometry.kernel):
        extent = (k - 1) * geometry.dilation[axis] + 1
        low = extent - 1 - geometry.padding[axis][0]
        covered = (geometry.out[axis] - 1) * geometry.strides[axis] + 1
        pads.append((low, geometry.space[axis] + extent - 1 - low - covered))
    axes = tuple(range(len(geometry.kernel)))
    return jax.lax.conv_general_dilated(
        g.astype(w.dtype),
        jnp.swapaxes(jnp.flip(w, axes), -1, -2),
        (1,) * len(axes),
        pads,
        lhs_dilation=geometry.strides,
        rhs_dilation=geometry.dilation,
        dimension_numbers=_layout(len(axes)),
        precision=geometry.precision,
    )


def _native(x: jax.Array, w: jax.Array, geometry: Geometry) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x,
        w,
        geometry.strides,
        geometry.padding,
        rhs_dilation=geometry.dilation,
        dimension_numbers=_layout(len(geometry.kernel)),
        precision=geometry.precision,
        preferred_element_type=geometry.dtype,
    )


def _layout(rank: int) -> jax.lax.ConvDimensionNumbers:
    """Returns (batch, *space, channel), (*space, in, out), (batch, *space, channel)."""
    space = tuple(range(1, rank + 1))
    signal = (0, rank + 1, *space)
    kernel = (rank + 1, rank, *range(rank))
    return jax.lax.ConvDimensionNumbers(signal, kernel, signal)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolve(geometry: Geometry, x: jax.Array, w: jax.Array) -> jax.Array:
    if not geometry.forward_by_product():
        return _native(x, w, geometry)
    rows = jnp.matmul(
        patches(x, geometry),
        w.reshape(-1, geometry.channels_out),
        precision=geometry.precision,
        preferred_element_type=geometry.dtype,
    )
    return rows.reshape(geometry.batch, *geometry.out, geometry.channels_out)


def _forward(geometry: Geometry, x: Any, w: Any) -> tuple:
    # What is kept: the input only where the kernel is differentiated, which it is not
    # in a measurement unless the model computes its kernels from its data.
    kept = x.value if w.perturbed else None
    return _convolve(geometry, x.value, w.value), (kept, w.value, x.perturbed)


def _backward(geometry: Geometry, kept: tuple, g: Any) -> tuple:
    x, w, x_perturbed = kept
    if isinstance(g, SymbolicZero):
        return None, None
    dx = input_gradient(g, w, geometry) if x_perturbed else None
    if x is None:
        return dx, None
    _, transpose = jax.vjp(lambda w: _native(x, w, geometry), w)
    return dx, transpose(g)[0]


_convolve.defvjp(_forward, _backward, symbolic_zeros=True)
