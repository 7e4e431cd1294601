"""Random architectures, as pure functions of a list of operations.

An architecture is data, so that one that failed can be pasted into a test by name.
"""

import functools
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st


ACTIVATIONS = {
    "relu": jax.nn.relu,
    "leaky": functools.partial(jax.nn.leaky_relu, negative_slope=0.2),
    "tanh": jnp.tanh,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "elu": jax.nn.elu,
    "sigmoid": jax.nn.sigmoid,
    "softplus": jax.nn.softplus,
    "sin": jnp.sin,
    "abs": jnp.abs,
}
OPS = (
    "conv",
    "pointwise",
    "strided",
    "dilated",
    "grouped",
    "two",
    "residual",
    "bottleneck",
    "post",
    "projected",
    "concat",
    "glu",
    "gate",
    "max",
    "max_overlap",
    "average",
    "average_overlap",
    "batch_norm",
    "layer_norm",
    "group_norm",
    "bias",
    "scale",
)
HEADS = ("mean", "flat", "max")
INPUTS = ("white", "photo", "offset")


class Architecture(NamedTuple):
    """What is built: operations in order, and the sizes."""

    ops: tuple[str, ...]
    act: str = "relu"
    width: int = 16
    gain: float = 2.0
    head: str = "mean"
    inputs: str = "white"
    size: int = 6


architectures = st.builds(
    Architecture,
    ops=st.lists(st.sampled_from(OPS), min_size=1, max_size=5).map(tuple),
    act=st.sampled_from(sorted(ACTIVATIONS)),
    width=st.sampled_from([12, 16, 24, 32]),
    gain=st.sampled_from([1.0, 2.0]),
    head=st.sampled_from(HEADS),
    inputs=st.sampled_from(INPUTS),
    size=st.sampled_from([4, 6, 8]),
)


def inputs(architecture):
    """Images: white, with the 1/f spectrum of photographs, or white with a mean."""
    n = architecture.size
    key = jax.random.key(zlib.crc32(repr(architecture).encode()))
    x = np.asarray(jax.random.normal(key, (4, n, n, 3)))
    if architecture.inputs == "offset":
        x = x + 0.7
    if architecture.inputs == "photo":
        f = np.fft.fftfreq(n)
        radius = np.hypot(f[:, None], f[None])
        radius[0, 0] = 1 / n
        x = np.fft.ifft2(
            np.fft.fft2(x, axes=(1, 2)) / radius[None, :, :, None], axes=(1, 2)
        ).real
        x = x @ np.array([[1.0, 0.9, 0.9], [0.0, 0.4, 0.1], [0.0, 0.0, 0.4]])
    return (x / np.sqrt(np.mean(x**2))).astype(np.float32)


class _Network:
    """Runs an architecture; its weights are made (as shapes) or read, in order."""

    def __init__(self, architecture, params: dict[str, Any] | None):
        self.architecture, self.params = architecture, params
        self.shapes: dict[str, tuple[tuple[int, ...], float]] = {}
        self.act = ACTIVATIONS[architecture.act]

    def weight(self, shape, variance):
        name = f"w{len(self.shapes):02}"
        self.shapes[name] = (shape, variance)
        if self.params is None:
            return jnp.zeros(shape)
        return self.params[name]

    def conv(self, x, width=None, kernel=3, stride=1, dilation=1, groups=1):
        width = width or self.architecture.width
        fan = kernel * kernel * x.shape[-1] // groups
        shape = (kernel, kernel, x.shape[-1] // groups, width)
        return jax.lax.conv_general_dilated(
            x,
            self.weight(shape, self.architecture.gain / fan),
            (stride, stride),
            "SAME",
            rhs_dilation=(dilation, dilation),
            feature_group_count=groups,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    def run(self, x):
        x = self.conv(x)
        for op in self.architecture.ops:
            x = self.step(op, x)
        x = self.act(x)
        match self.architecture.head:
            case "mean":
                x = x.mean((1, 2))
            case "max":
                x = x.max((1, 2))
            case _:
                x = x.reshape(x.shape[0], -1)
        return x @ self.weight((x.shape[-1], 4), 1.0 / x.shape[-1])

    def step(self, op, x):
        act, conv = self.act, self.conv
        match op:
            case "conv":
                return conv(act(x))
            case "pointwise":
                return conv(act(x), kernel=1)
            case "strided" if x.shape[1] > 2:
                return conv(act(x), stride=2)
            case "dilated":
                return conv(act(x), dilation=2)
            case "grouped":
                return conv(act(x), groups=4)
            case "two":
                return conv(act(conv(act(x), kernel=1)))
            case "residual":
                return x + conv(act(x))
            case "bottleneck":
                half = self.architecture.width // 2
                return x + conv(act(conv(act(x), half, kernel=1)))
            case "post":
                return act(x + conv(act(conv(x))))
            case "projected":
                y = act(x)
                return conv(y, kernel=1) + conv(act(conv(y)))
            case "concat":
                y = act(x)
                return conv(jnp.concatenate([conv(y), conv(y, kernel=1), y], -1))
            case "glu":
                a, b = jnp.split(conv(act(x), 2 * self.architecture.width), 2, -1)
                return conv(a * jax.nn.sigmoid(b))
            case "gate":
                return conv(conv(x) * jax.nn.sigmoid(conv(act(x), kernel=1)))
            case "max" if x.shape[1] > 2:
                return conv(pool(act(x), "max", 2, 0))
            case "max_overlap" if x.shape[1] > 2:
                return conv(pool(act(x), "max", 3, 1))
            case "average" if x.shape[1] > 2:
                return conv(pool(act(x), "sum", 2, 0))
            case "average_overlap" if x.shape[1] > 2:
                return conv(pool(act(x), "sum", 3, 1))
            case "batch_norm":
                return conv(act(normalize(x, (0, 1, 2))))
            case "layer_norm":
                return conv(act(normalize(x, (3,))))
            case "group_norm":
                y = x.reshape(*x.shape[:3], 2, -1)
                return conv(act(normalize(y, (1, 2, 4)).reshape(x.shape)))
            case "bias":
                return x + self.weight((x.shape[-1],), 0.3)
            case "scale":
                return 0.7 * x
        return conv(act(x))


def pool(x, what, size, pad):
    window, strides = (1, size, size, 1), (1, 2, 2, 1)
    pads = ((0, 0), (pad, pad), (pad, pad), (0, 0))
    if what == "max":
        low = -np.float32(np.inf)
        return jax.lax.reduce_window(x, low, jax.lax.max, window, strides, pads)
    zero = np.float32(0)
    total = jax.lax.reduce_window(x, zero, jax.lax.add, window, strides, pads)
    return total / size**2


def normalize(x, axes):
    mean = x.mean(axes, keepdims=True)
    centred = x - mean
    return centred * jax.lax.rsqrt((centred**2).mean(axes, keepdims=True) + 1e-5)


def build(architecture):
    """Returns (model, law of its weights: name -> (shape, variance))."""
    blank = _Network(architecture, None)
    jax.eval_shape(blank.run, jnp.asarray(inputs(architecture)))

    def model(params, x):
        return _Network(architecture, params).run(x)

    return model, blank.shapes


def draw(shapes, key):
    """Returns one network: independent normal weights."""
    keys = jax.random.split(key, len(shapes))
    return {
        n: jnp.sqrt(v) * jax.random.normal(k, s)
        for (n, (s, v)), k in zip(shapes.items(), keys, strict=True)
    }


def example(shapes):
    """Returns parameters with exactly these second moments: what predictions read."""
    return {
        n: jnp.asarray(
            np.sqrt(v) * np.where(np.arange(np.prod(s)) % 2, 1.0, -1.0).reshape(s),
            jnp.float32,
        )
        for n, (s, v) in shapes.items()
    }
