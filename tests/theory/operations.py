"""What random architectures are made of: operations, by name.

Each takes the network and a value, and makes weights in order as it goes. One that
cannot be done (a stride on a single position) returns None.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Constant(NamedTuple):
    """Parameters that are the same in every network."""

    shape: tuple[int, ...]
    value: float


class Random(NamedTuple):
    """Independent normal parameters of zero mean."""

    shape: tuple[int, ...]
    variance: float


Network = Any
OPS: dict[str, Callable[["Network", jax.Array], jax.Array | None]] = {}


def op(function):
    OPS[function.__name__.rstrip("_")] = function
    return function


def convolve(x, w, stride=1, dilation=1, up=1, groups=1, padding="SAME"):
    rank = x.ndim - 2
    space = "DHW"[3 - rank :]
    return jax.lax.conv_general_dilated(
        x,
        w,
        (stride,) * rank,
        padding,
        lhs_dilation=(up,) * rank,
        rhs_dilation=(dilation,) * rank,
        feature_group_count=groups,
        dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"),
    )


def pool(x, what, size, pad):
    rank = x.ndim - 2
    window, strides = (1, *(size,) * rank, 1), (1, *(2,) * rank, 1)
    pads = ((0, 0), *((pad, pad),) * rank, (0, 0))
    if what == "max":
        low = -np.float32(np.inf)
        return jax.lax.reduce_window(x, low, jax.lax.max, window, strides, pads)
    zero = np.float32(0)
    total = jax.lax.reduce_window(x, zero, jax.lax.add, window, strides, pads)
    return total / size**rank


def pooled(net, x, *how):
    return (
        net.conv(pool(net.act(x), *how)) if min(x.shape[1:-1], default=0) > 2 else None
    )


def positions(x):
    return tuple(range(1, x.ndim - 1))


def halves(x):
    n = x.shape[-1] // 2
    return x[..., :n], x[..., n : 2 * n]


@op
def conv(net, x):
    return net.conv(net.act(x))


@op
def pointwise(net, x):
    return net.conv(net.act(x), kernel=1)


@op
def even(net, x):
    return net.conv(net.act(x), kernel=2)


@op
def strided(net, x):
    return net.conv(net.act(x), stride=2)


@op
def dilated(net, x):
    return net.conv(net.act(x), dilation=2)


@op
def grouped(net, x):
    return net.conv(net.act(x), groups=4)


@op
def depthwise(net, x):
    return net.conv(net.act(x), x.shape[-1], groups=x.shape[-1])


@op
def separable(net, x):
    return net.conv(net.conv(net.act(x), x.shape[-1], groups=x.shape[-1]), kernel=1)


@op
def inverted(net, x):
    y = net.act(net.conv(x, 2 * x.shape[-1], kernel=1))
    y = net.act(net.conv(y, y.shape[-1], groups=y.shape[-1]))
    return x + net.conv(y, x.shape[-1], kernel=1)


@op
def transposed(net, x):
    if x.ndim == 2 or math.prod(x.shape[1:-1]) > 16:
        return None
    pads = ((1, 2),) * (x.ndim - 2)
    return net.conv(net.act(x), up=2, padding=pads)


@op
def repeated(net, x):
    if x.ndim == 2 or math.prod(x.shape[1:-1]) > 16:
        return None
    return net.conv(jnp.repeat(net.act(x), 2, axis=1))


@op
def resized(net, x):
    if x.ndim != 4:
        return None
    shape = (x.shape[0], 5, 3, x.shape[-1])
    return net.conv(jax.image.resize(net.act(x), shape, "bilinear"))


@op
def two(net, x):
    return net.conv(net.act(net.conv(net.act(x), kernel=1)))


@op
def residual(net, x):
    return x + net.block(x)


@op
def activated(net, x):
    return x + net.act(net.conv(x, x.shape[-1]))


@op
def activated_twice(net, x):
    x = net.act(x)
    for _ in range(2):
        x = np.float32(np.sqrt(0.5)) * (x + net.act(net.conv(x, x.shape[-1])))
    return x


@op
def twins(net, x):
    x = net.act(x)
    return net.act(net.conv(x)) + net.act(net.conv(x))


@op
def rectified(net, x):
    return net.conv(jax.nn.relu(x))


@op
def smoothed(net, x):
    return net.conv(jax.nn.gelu(x))


@op
def multiplied(net, x):
    return net.conv(0.5 * x * x)


@op
def bottleneck(net, x):
    half = net.conv(net.act(x), net.architecture.width // 2, kernel=1)
    return x + net.conv(net.act(half), x.shape[-1])


@op
def post(net, x):
    return net.act(x + net.conv(net.act(net.conv(x)), x.shape[-1]))


@op
def projected(net, x):
    y = net.act(x)
    return net.conv(y, kernel=1) + net.conv(net.act(net.conv(y)))


@op
def inception(net, x):
    y = net.act(x)
    return net.conv(jnp.concatenate([net.conv(y), net.conv(y, kernel=1), y], -1))


@op
def grown(net, x):
    return jnp.concatenate([x, net.conv(net.act(x), 8)], -1)


@op
def shuffled(net, x):
    a, b = halves(x)
    y = jnp.concatenate([a, net.conv(net.act(b), b.shape[-1])], -1)
    return net.conv(y.reshape(*y.shape[:-1], 2, -1).swapaxes(-1, -2).reshape(y.shape))


@op
def layer_scaled(net, x):
    small = net.parameter(Constant((x.shape[-1],), 0.3))
    return x + small * net.block(x)


@op
def glu(net, x):
    a, b = halves(net.conv(net.act(x), 2 * net.architecture.width))
    return net.conv(a * jax.nn.sigmoid(b))


@op
def swiglu(net, x):
    a, b = (net.conv(x, kernel=1) for _ in range(2))
    return x + net.conv(jax.nn.silu(a) * b, x.shape[-1], kernel=1)


@op
def gate(net, x):
    return net.conv(net.conv(x) * jax.nn.sigmoid(net.conv(net.act(x), kernel=1)))


@op
def highway(net, x):
    t = jax.nn.sigmoid(net.conv(x, x.shape[-1], kernel=1) - 1.0)
    return t * net.act(net.conv(x, x.shape[-1])) + (1.0 - t) * x


@op
def squeeze_excite(net, x):
    s = net.act(x).mean(positions(x), keepdims=True)
    s = net.act(net.dense(s, 8))
    return net.conv(net.act(x) * jax.nn.sigmoid(net.dense(s, x.shape[-1])))


@op
def context(net, x):
    return x + net.dense(net.act(x).mean(positions(x), keepdims=True), x.shape[-1])


@op
def mixture(net, x):
    p = jax.nn.softmax(net.dense(net.act(x), 2, 1.0), axis=-1)
    a, b = (net.conv(net.act(x), kernel=1) for _ in range(2))
    return p[..., :1] * a + p[..., 1:] * b


@op
def maxout(net, x):
    return jnp.maximum(*halves(net.conv(x, 2 * net.architecture.width)))


@op
def crelu(net, x):
    return net.conv(jax.nn.relu(jnp.concatenate([x, -x], -1)))


@op
def prelu(net, x):
    slope = net.parameter(Constant((x.shape[-1],), 0.25))
    return net.conv(jnp.where(x > 0, x, slope * x))


@op
def attention(net, x):
    if x.ndim == 2:
        return None
    y = x.reshape(x.shape[0], -1, x.shape[-1])
    q, k, v = (net.dense(y, net.architecture.width, 1.0) for _ in range(3))
    scores = jnp.einsum("bqc,bkc->bqk", q, k) / np.sqrt(q.shape[-1])
    out = jnp.einsum("bqk,bkc->bqc", jax.nn.softmax(scores), v)
    return x + net.dense(out, x.shape[-1], 1.0).reshape(x.shape)


@op
def mixer(net, x):
    """A dense layer over positions."""
    if x.ndim == 2:
        return None
    y = net.act(x).reshape(x.shape[0], -1, x.shape[-1]).swapaxes(1, 2)
    y = net.dense(y, y.shape[-1]).swapaxes(1, 2)
    return x + y.reshape(x.shape)


@op
def max_(net, x):
    return pooled(net, x, "max", 2, 0)


@op
def max_overlap(net, x):
    return pooled(net, x, "max", 3, 1)


@op
def average(net, x):
    return pooled(net, x, "sum", 2, 0)


@op
def average_overlap(net, x):
    return pooled(net, x, "sum", 3, 1)


@op
def standardized(net, x):
    width = net.architecture.width
    if x.ndim == 2:
        return None
    w = net.kernel(x, width, 3)
    axes = tuple(range(w.ndim - 1))
    w = (w - w.mean(axes)) / jnp.sqrt(w.var(axes) * math.prod(w.shape[:-1]))
    return convolve(net.act(x), w)


@op
def bias(net, x):
    return x + net.weight((x.shape[-1],), 0.3)


@op
def embedded(net, x):
    """Parameters by position."""
    return x + net.weight(x.shape[1:], 0.3)


@op
def scale(net, x):
    return 0.7 * x


@op
def gains(net, x):
    return x * net.weight((x.shape[-1],), 0.8)


@op
def shifted(net, x):
    return net.conv(net.act(x) + 0.4)


@op
def clipped(net, x):
    return net.conv(jnp.clip(x, -0.8, 1.1))


@op
def centred(net, x):
    return net.conv(net.act(x - x.mean(-1, keepdims=True)))


@op
def squared(net, x):
    return net.conv(x * net.act(x), kernel=1)


@op
def dropout(net, x):
    keep = jax.random.bernoulli(jax.random.key(len(net.seen)), 0.8, x.shape)
    return net.conv(jnp.where(keep, net.act(x) / 0.8, 0.0))


@op
def tied(net, x):
    if x.ndim == 2:
        w = net.weight((x.shape[-1], x.shape[-1]), net.architecture.gain / x.shape[-1])
        return net.act(net.act(x) @ w) @ w
    w = net.kernel(x, x.shape[-1], 3)
    return convolve(net.act(convolve(net.act(x), w)), w)


@op
def tied_residual(net, x):
    w = net.weight((x.shape[-1], x.shape[-1]), net.architecture.gain / x.shape[-1])
    y = x + net.act(x) @ w
    return y + net.act(y) @ w


@op
def scan(net, x):
    n = x.shape[-1]
    stack = net.weight((3, n, n), net.architecture.gain / n)
    return jax.lax.scan(lambda h, w: (h + net.act(h) @ w, None), x, stack)[0]


@op
def recurrent(net, x):
    """The last state of a recurrent cell that reads the positions in order."""
    if x.ndim != 3:
        return None
    n = net.architecture.width
    u, w = net.weight((x.shape[-1], n), 1.0 / n), net.weight((n, n), 1.0 / n)
    steps = x.swapaxes(0, 1)
    h = jnp.zeros((x.shape[0], n))
    return jax.lax.scan(lambda h, v: (jnp.tanh(v @ u + h @ w), None), h, steps)[0]


@op
def causal(net, x):
    if x.ndim != 3:
        return None
    return net.conv(net.act(x), padding=((2, 0),))


@op
def running(net, x):
    return net.conv(jnp.cumsum(net.act(x), 1) / x.shape[1]) if x.ndim > 2 else None


@op
def reversed_(net, x):
    return net.conv(net.act(x)[:, ::-1], x.shape[-1]) + x if x.ndim > 2 else None


@op
def cropped(net, x):
    return net.conv(net.act(x)[:, 1:]) if x.ndim > 2 and x.shape[1] > 2 else None


@op
def reflected(net, x):
    if x.ndim == 2 or x.shape[1] < 2:
        return None
    pads = ((0, 0), (1, 1), *((0, 0),) * (x.ndim - 2))
    return net.conv(jnp.pad(net.act(x), pads, mode="reflect"))


@op
def patches(net, x):
    """Two neighbours laid into channels."""
    if x.ndim == 2 or x.shape[1] % 2:
        return None
    y = net.act(x)
    return net.conv(jnp.concatenate([y[:, ::2], y[:, 1::2]], -1))


@op
def sorted_(net, x):
    return net.dense(jnp.sort(x, axis=-1), net.architecture.width)
