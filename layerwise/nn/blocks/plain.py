"""A stack of convolutions with activation and pooling, written as a table of rows."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from layerwise.nn.modules import max_pool
from layerwise.types import Initializer


class PoolSpec(NamedTuple):
    """Max pooling after a convolution. Padding is -inf: nothing, after ReLU."""

    window: int = 3
    stride: int = 2
    padding: int = 0


class PlainSpec(NamedTuple):
    """One row: convolution with bias, ReLU, optional LRN, optional pooling.

    `padding` is that of each side; None is `kernel // 2`, which keeps the size of the
    map at stride 1.
    """

    features: int
    kernel: int = 3
    stride: int = 1
    padding: int | None = None
    groups: int = 1
    pool: PoolSpec | None = None
    local_norm: bool = False

    @property
    def pad(self) -> int:
        """Padding of each side, resolved."""
        return self.kernel // 2 if self.padding is None else self.padding


def plain_stack(
    x: jax.Array,
    rows: Sequence[PlainSpec],
    kernel_inits: Sequence[Initializer],
    *,
    dtype: Any = None,
) -> jax.Array:
    """Returns the map after all rows.

    To be called in the compact method of a module: it makes the layers `Conv_1`,
    `Conv_2`, ... of that module, numbered as in the papers.

    Args:
        x: Images, `(..., height, width, channel)`.
        rows: The convolutions, first to last.
        kernel_inits: One initializer per row.
        dtype: Computation dtype.
    """
    for number, (row, init) in enumerate(zip(rows, kernel_inits, strict=True), 1):
        x = nn.Conv(
            row.features,
            (row.kernel, row.kernel),
            strides=row.stride,
            padding=row.pad,
            feature_group_count=row.groups,
            kernel_init=init,
            dtype=dtype,
            name=f"Conv_{number}",
        )(x)
        x = finish_row(x, row)
    return x


def finish_row(x: jax.Array, row: PlainSpec) -> jax.Array:
    """Returns what a row makes of its convolution: ReLU, then LRN, then pooling."""
    x = nn.relu(x)
    if row.local_norm:
        x = local_response_norm(x)
    if row.pool is None:
        return x
    return max_pool(x, row.pool.window, row.pool.stride, row.pool.padding)


def local_response_norm(
    x: jax.Array,
    *,
    size: int = 5,
    alpha: float = 1e-4,
    beta: float = 0.75,
    offset: float = 2.0,
) -> jax.Array:
    """Returns x over (offset + alpha * sum of x**2 over `size` channels)**beta.

    Trap: with the published constants it is nearly a division by ``2**0.75 = 1.68``,
    whatever the signal; and later libraries divide alpha by `size`.

    Args:
        x: A map, channels last.
        size: Channels in the window, centered on the one that is normalized.
        alpha: Weight of the sum of squares; not divided by `size`.
        beta: Exponent.
        offset: k in the paper.

    References:
        [Krizhevsky2012] Sec. 3.3.
    """
    pad = [(0, 0)] * (x.ndim - 1) + [(size // 2, (size - 1) // 2)]
    squares = jnp.pad(x * x, pad)
    features = x.shape[-1]
    total = sum(squares[..., i : i + features] for i in range(size))
    return x / (offset + alpha * total) ** beta
