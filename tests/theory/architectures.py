"""Random architectures, as pure functions of a list of operations.

An architecture is data, so that one that failed can be pasted into a test by name. It
is a network on vectors, signals, images or volumes; an operation that cannot be done
(a stride on a single position) is a plain convolution. "add:2" reads the value that was
there two operations ago.
"""

import functools
import math
import random
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from tests.theory import normalizations  # noqa: F401  (its operations are in OPS)
from tests.theory.operations import OPS, Constant, Random, convolve


ACTIVATIONS = {
    "relu": jax.nn.relu,
    "leaky": functools.partial(jax.nn.leaky_relu, negative_slope=0.2),
    "tanh": jnp.tanh,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "elu": jax.nn.elu,
    "selu": jax.nn.selu,
    "mish": jax.nn.mish,
    "relu6": jax.nn.relu6,
    "hard_swish": jax.nn.hard_swish,
    "sigmoid": jax.nn.sigmoid,
    "softplus": jax.nn.softplus,
    "sin": jnp.sin,
    "abs": jnp.abs,
    "square": jnp.square,
    "identity": lambda x: x,
}
HEADS = ("mean", "flat", "max", "map", "first", "attended")
INPUTS = ("white", "photo", "offset", "positive", "sparse", "tokens", "unequal")


class Architecture(NamedTuple):
    """What is built: operations in order, and the sizes."""

    ops: tuple[str, ...]
    act: str = "relu"
    width: int = 16
    gain: float = 2.0
    head: str = "mean"
    inputs: str = "white"
    size: int = 6
    rank: int = 2
    batch: int = 4
    weights: str = "normal"


BACK = ("add", "project", "cat", "gate_with", "subtract")
"""Operations that read an earlier value: "add:2"."""


class _Network:
    """Runs an architecture; its weights are made (as shapes) or read, in order."""

    def __init__(self, architecture, params: dict[str, Any] | None):
        self.architecture, self.params = architecture, params
        self.shapes: dict[str, Random | Constant] = {}
        self.act = ACTIVATIONS[architecture.act]
        self.seen: list[jax.Array] = []

    def parameter(self, law):
        name = f"w{len(self.shapes):02}"
        self.shapes[name] = law
        return jnp.ones(law.shape) if self.params is None else self.params[name]

    def weight(self, shape, variance):
        return self.parameter(Random(tuple(shape), variance))

    def dense(self, x, width, gain=None):
        gain = self.architecture.gain if gain is None else gain
        return x @ self.weight((x.shape[-1], width), gain / x.shape[-1])

    def kernel(self, x, width, size, groups=1):
        fan = size ** (x.ndim - 2) * x.shape[-1] // groups
        shape = (*(size,) * (x.ndim - 2), x.shape[-1] // groups, width)
        return self.weight(shape, self.architecture.gain / fan)

    def conv(self, x, width=None, kernel=3, groups=1, **how):
        width = width or self.architecture.width
        if x.shape[-1] % groups or width % groups:
            groups = 1
        if x.ndim == 2:
            return self.dense(x, width)
        w = self.kernel(x, width, kernel, groups)
        return convolve(x, w, groups=groups, **how)

    def block(self, x):
        """A residual branch: as many channels as there are."""
        return self.conv(self.act(x), x.shape[-1])

    def run(self, x):
        if jnp.issubdtype(x.dtype, jnp.integer):
            x = self.weight((TOKENS, self.architecture.width), 1.0)[x]
        x = self.conv(x)
        for name in self.architecture.ops:
            self.seen.append(x)
            what, _, back = name.partition(":")
            if back:
                y = self.seen[max(len(self.seen) - 1 - int(back), 0)]
                got = self.join(what, x, y)
            else:
                got = OPS[what](self, x)
            x = self.conv(self.act(x)) if got is None else got
        x = self.head(self.act(x))
        return x @ self.weight((x.shape[-1], 4), 1.0 / x.shape[-1])

    def join(self, what, x, y):
        if y.shape[:-1] != x.shape[:-1]:
            return None
        if what != "cat" and y.shape != x.shape:
            y = self.conv(y, x.shape[-1], kernel=1)
        match what:
            case "add":
                return x + y
            case "subtract":
                return self.act(x) - y
            case "project":
                return self.conv(self.act(x), x.shape[-1]) + self.conv(
                    y, x.shape[-1], kernel=1
                )
            case "cat":
                return jnp.concatenate([self.conv(self.act(x)), y], -1)
            case _:
                return self.block(x) * jax.nn.sigmoid(y)

    def head(self, x):
        positions = tuple(range(1, x.ndim - 1))
        match self.architecture.head:
            case "mean":
                return x.mean(positions)
            case "max":
                return x.max(positions) if positions else x
            case "first":
                return x[(slice(None), *(0 for _ in positions))]
            case "flat":
                return x.reshape(x.shape[0], -1)
            case "attended" if x.ndim > 2:
                x = x.reshape(x.shape[0], -1, x.shape[-1])
                score = jax.nn.softmax(self.dense(x, 1, 1.0), axis=1)
                return (score * x).sum(1)
        return x


TOKENS = 11


def numbered(number):
    """Returns one architecture of all: neighbouring numbers have nothing in common."""
    rng = random.Random(number)

    def operation():
        name = rng.choice((*sorted(OPS), *BACK, *BACK, *BACK))
        return f"{name}:{rng.randint(1, 3)}" if name in BACK else name

    return Architecture(
        ops=tuple(operation() for _ in range(rng.randint(1, 6))),
        act=rng.choice(sorted(ACTIVATIONS)),
        width=rng.choice([12, 16, 24]),
        gain=rng.choice([1.0, 2.0]),
        head=rng.choice(HEADS),
        inputs=rng.choice(INPUTS),
        size=rng.choice([3, 4, 5]),
        rank=rng.choice([2, 2, 2, 2, 1, 1, 1, 0, 0, 3]),
        batch=rng.choice([4, 4, 1]),
        weights=rng.choice(["normal", "normal", *sorted(LAWS)]),
    )


def numbers(shard):
    """Strategy: numbers of one of many disjoint sets of architectures."""
    return st.integers(1000 * shard, 1000 * shard + 999)


def inputs(architecture):
    """Returns the data: of mean square 1, or integers.

    White; with the 1/f spectrum of photographs; with a mean; not negative; mostly zero;
    examples of unlike size.
    """
    n, batch, rank = architecture.size, architecture.batch, architecture.rank
    space = (2 * n,) if rank == 1 else (2, 3, 3) if rank == 3 else (n,) * rank
    name = repr(architecture._replace(weights="normal"))
    key = jax.random.key(zlib.crc32(name.replace(", weights='normal'", "").encode()))
    if architecture.inputs == "tokens" and rank == 1:
        return np.asarray(jax.random.randint(key, (batch, *space), 0, TOKENS))
    channels = 3 if rank else 10
    x = np.asarray(jax.random.normal(key, (batch, *space, channels)))
    match architecture.inputs:
        case "offset":
            x = x + 0.7
        case "positive":
            x = np.abs(x)
        case "sparse":
            x = np.where(x >= min(0.8, x.max()), x, 0.0)
        case "unequal":
            x = x * np.exp(np.linspace(-1, 1, batch)).reshape(-1, *(1,) * (rank + 1))
        case "photo" if rank:
            axes = tuple(range(1, 1 + rank))
            grid = np.meshgrid(*(np.fft.fftfreq(m) for m in space), indexing="ij")
            radius = np.sqrt(sum(f**2 for f in grid))
            radius.flat[0] = 1 / n
            x = np.fft.ifftn(np.fft.fftn(x, axes=axes) / radius[..., None], axes=axes)
            x = x.real @ np.array([[1.0, 0.9, 0.9], [0.0, 0.4, 0.1], [0.0, 0.0, 0.4]])
    return (x / np.sqrt(np.mean(x**2))).astype(np.float32)


def _truncated(key, shape):
    """Truncated at two standard deviations, as initializers do."""
    return jax.random.truncated_normal(key, -2.0, 2.0, shape) / 0.8796256610342398


def _uniform(key, shape):
    return np.float32(np.sqrt(3.0)) * jax.random.uniform(key, shape, minval=-1.0)


LAWS = {"normal": jax.random.normal, "truncated": _truncated, "uniform": _uniform}
"""Of variance 1, by `Architecture.weights`."""


def build(architecture):
    """Returns (model, law of its weights: name -> `Random` or `Constant`)."""
    blank = _Network(architecture, None)
    jax.eval_shape(blank.run, jnp.asarray(inputs(architecture)))

    def model(params, x):
        return _Network(architecture, params).run(x)

    return model, blank.shapes


def draw(laws, key, weights="normal"):
    """Returns one network, cut from one array: its size is rounded up, so that few
    programs that make it are ever compiled."""
    sizes = {n: math.prod(law.shape) for n, law in laws.items()}
    total = 1 << (sum(sizes.values()) - 1).bit_length()
    entries, at, made = LAWS[weights](key, (total,)), 0, {}
    for n, law in laws.items():
        if isinstance(law, Constant):
            made[n] = jnp.full(law.shape, law.value)
            continue
        own = entries[at : at + sizes[n]].reshape(law.shape)
        made[n], at = own * np.float32(np.sqrt(law.variance)), at + sizes[n]
    return made


def apart(laws, key, weights):
    """Returns one network, array by array: what predictions read where weights are not
    normal."""
    keys = jax.random.split(key, len(laws))

    def one(law, key):
        if isinstance(law, Constant):
            return jnp.full(law.shape, law.value)
        return np.float32(np.sqrt(law.variance)) * LAWS[weights](key, law.shape)

    return {n: one(own, k) for (n, own), k in zip(laws.items(), keys, strict=True)}


def example(laws):
    """Returns parameters with exactly these second moments: what predictions read."""

    def one(law):
        if isinstance(law, Constant):
            return jnp.full(law.shape, law.value)
        signs = np.where(np.arange(math.prod(law.shape)) % 2, 1.0, -1.0)
        size = np.sqrt(law.variance)
        return jnp.asarray(size * signs.reshape(law.shape), jnp.float32)

    return {n: one(law) for n, law in laws.items()}
