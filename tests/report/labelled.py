"""Networks whose state is known: half of them well, half of them not."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from report.networks import (
    Depthwise,
    Directions,
    Growing,
    Mixer,
    NnxPlain,
    Scaled,
    Siren,
    UNet,
)

import layerwise as lw


init = nn.initializers
HE = init.he_normal()
LECUN = init.lecun_normal()


def scaled(gain: float):
    """Weights of variance gain / fan-in."""
    return init.variance_scaling(gain, "fan_in", "normal")


def normal(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(5), shape)


class Plain(nn.Module):
    """Dense layers of one width."""

    depth: int = 20
    width: int = 64
    kernel: Any = HE
    bias: Any = init.zeros
    phi: Callable = nn.relu
    norm: Any = None
    dtype: Any = None
    output: int = 10

    @nn.compact
    def __call__(self, x):
        for _ in range(self.depth - 1):
            x = nn.Dense(
                self.width, kernel_init=self.kernel, bias_init=self.bias,
                dtype=self.dtype,
            )(x)  # fmt: skip
            if self.norm is not None:
                x = self.norm()(x)
            x = self.phi(x)
        return nn.Dense(self.output, kernel_init=LECUN, dtype=self.dtype)(x)


class PlainConv(nn.Module):
    """Convolutions of one width, then the mean over positions."""

    depth: int = 10
    width: int = 16
    window: int = 3
    kernel: Any = HE
    pool_every: int = 0
    norm: Any = None

    @nn.compact
    def __call__(self, x):
        for i in range(self.depth):
            x = nn.Conv(self.width, (self.window,) * 2, kernel_init=self.kernel)(x)
            if self.norm is not None:
                x = self.norm()(x)
            x = nn.relu(x)
            if self.pool_every and (i + 1) % self.pool_every == 0:
                x = nn.max_pool(x, (2, 2), (2, 2))
        return nn.Dense(10)(x.mean((1, 2)))


class Residual(nn.Module):
    """x + scale * f(norm(x)), dense."""

    blocks: int = 16
    width: int = 64
    kernel: Any = HE
    last: Any = None
    scale: float = 1.0
    norm: Any = None
    post: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.width, kernel_init=LECUN)(x)
        for _ in range(self.blocks):
            y = self.norm()(x) if self.norm is not None and not self.post else x
            y = nn.relu(nn.Dense(self.width, kernel_init=self.kernel)(y))
            y = nn.Dense(self.width, kernel_init=self.last or self.kernel)(y)
            x = x + self.scale * y
            if self.post:
                x = self.norm()(x)
        if self.norm is not None and not self.post:
            x = self.norm()(x)
        return nn.Dense(10, kernel_init=LECUN)(x)


class Block(nn.Module):
    """Attention and MLP, each with a residual sum, normalized before or after it."""

    width: int = 32
    heads: int = 2
    post: bool = False
    scaled: str = "queries"  # or "scores", or ""
    causal: bool = False
    normalized: bool = False  # queries and keys
    kernel: Any = LECUN

    @nn.compact
    def __call__(self, x, _=None):
        for f in (self.attention, self.mlp):
            x = nn.LayerNorm()(x + f(x)) if self.post else x + f(nn.LayerNorm()(x))
        return x, None

    def attention(self, x):
        b, n, _ = x.shape
        heads = lambda: nn.Dense(self.width, kernel_init=self.kernel)(x).reshape(
            b, n, self.heads, -1
        )
        q, k, v = heads(), heads(), heads()
        if self.normalized:
            q, k = nn.LayerNorm()(q), nn.LayerNorm()(k)
        if self.scaled == "queries":
            q = q / q.shape[-1] ** 0.5
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k)
        if self.scaled == "scores":
            scores = scores / q.shape[-1] ** 0.5
        if self.causal:
            scores = jnp.where(jnp.tri(n, dtype=bool), scores, -1e9)
        weights = nn.softmax(scores)
        y = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(b, n, -1)
        return nn.Dense(self.width, kernel_init=self.kernel)(y)

    def mlp(self, x):
        x = nn.gelu(nn.Dense(4 * self.width, kernel_init=self.kernel)(x))
        return nn.Dense(self.width, kernel_init=self.kernel)(x)


def blocks(**options):
    return tuple(options.items())


class Transformer(nn.Module):
    """An encoder on float tokens, or on integer ones with shared embeddings."""

    depth: int = 4
    options: Any = ()  # of the blocks, as pairs
    scan: bool = False
    vocabulary: int = 0
    embedding: Any = init.normal(1.0)

    @nn.compact
    def __call__(self, x):
        options = dict(self.options)
        width, table = Block(**options, parent=None).width, None
        if self.vocabulary:
            table = self.param("table", self.embedding, (self.vocabulary, width))
            x = jnp.asarray(table)[x]
        else:
            x = nn.Dense(width)(x)
        if self.scan:
            blocks: Any = nn.scan(
                Block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=self.depth,
            )
            x, _ = blocks(**options)(x, None)
        else:
            for _ in range(self.depth):
                x, _ = Block(**options)(x)
        if not options.get("post"):
            x = nn.LayerNorm()(x)
        if table is not None:
            return jnp.dot(x, jnp.asarray(table).T)
        return nn.Dense(10)(x.mean(1))


class Recurrent(nn.Module):
    """A recurrent cell over time; the last state is read."""

    width: int = 32
    cell: Any = nn.GRUCell
    recurrent: Any = init.orthogonal()
    kernel: Any = LECUN
    phi: Callable = nn.tanh

    @nn.compact
    def __call__(self, x):
        options: dict[str, Any] = {}
        if self.cell is nn.SimpleCell:
            options["activation_fn"] = self.phi
        cell = self.cell(
            self.width, recurrent_kernel_init=self.recurrent,
            kernel_init=self.kernel, **options,
        )  # fmt: skip
        states: Any = nn.RNN(cell)(x)
        return nn.Dense(10)(states[:, -1])


class Tied(nn.Module):
    """One matrix, used at every layer."""

    depth: int = 12
    width: int = 64
    kernel: Any = HE

    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(self.width, kernel_init=self.kernel)
        for _ in range(self.depth):
            x = nn.relu(layer(x))
        return nn.Dense(10)(x)


def batch_norm():
    return nn.BatchNorm(use_running_average=False)


@dataclasses.dataclass(frozen=True)
class Case:
    """A network and what is known of it: the kinds that make it sick, or none."""

    model: Any
    inputs: Any
    sick: tuple[str, ...] = ()
    options: Any = None


DENSE, IMAGE = normal(16, 64), normal(4, 16, 16, 3)
PLACES = jax.random.uniform(jax.random.key(7), (64, 2), minval=-1.0)
TOKENS, TIME = normal(4, 12, 16), normal(8, 12, 16)
WORDS = jax.random.randint(jax.random.key(6), (4, 12), 0, 50)
V, E = ("vanishing",), ("exploding",)

CASES: dict[str, Case] = {
    # plain, dense
    "He, ReLU, depth 20": Case(Plain(), DENSE),
    "LeCun, ReLU, depth 20": Case(Plain(kernel=LECUN), DENSE, V),
    "LeCun, ReLU, depth 4": Case(Plain(depth=4, kernel=LECUN), DENSE),
    "gain 4, ReLU, depth 20": Case(Plain(kernel=scaled(4.0)), DENSE, E),
    "stddev 0.01 everywhere": Case(Plain(depth=5, kernel=init.normal(0.01)), DENSE, V),
    "stddev 1 everywhere": Case(Plain(depth=5, kernel=init.normal(1.0)), DENSE, E),
    "LeCun, SELU, depth 20": Case(Plain(kernel=LECUN, phi=nn.selu), DENSE),
    "LeCun, ELU, depth 20": Case(Plain(kernel=LECUN, phi=nn.elu), DENSE),
    "He, depth 8, one example": Case(Plain(depth=8), DENSE[:1]),
    "LeCun, tanh, depth 12": Case(Plain(depth=12, kernel=LECUN, phi=nn.tanh), DENSE),
    "gain 0.25, tanh, depth 12": Case(
        Plain(depth=12, kernel=scaled(0.25), phi=nn.tanh), DENSE, V
    ),
    "gain 400, tanh: saturated": Case(
        Plain(depth=6, kernel=scaled(400.0), phi=nn.tanh),
        DENSE,
        ("saturation", "exploding"),
    ),
    "LeCun, sigmoid, depth 12": Case(
        Plain(depth=12, kernel=LECUN, phi=nn.sigmoid), DENSE, V
    ),
    "ReLU with biases of -5: dead": Case(
        Plain(depth=6, bias=init.constant(-5.0)), DENSE, ("dead_units", "vanishing")
    ),
    "ReLU with biases of -2": Case(
        Plain(depth=6, bias=init.constant(-2.0)), DENSE, ("dead_units", "vanishing")
    ),
    "leaky ReLU of 0.3, LeCun, depth 6": Case(
        Plain(depth=6, kernel=LECUN, phi=lambda x: nn.leaky_relu(x, 0.3)), DENSE
    ),
    "leaky ReLU of 0.3, LeCun, depth 24": Case(
        Plain(depth=24, kernel=LECUN, phi=lambda x: nn.leaky_relu(x, 0.3)), DENSE, V
    ),
    "Glorot, sigmoid, depth 16": Case(
        Plain(depth=16, kernel=init.glorot_uniform(), phi=nn.sigmoid), DENSE, V
    ),
    "He, GELU, depth 12": Case(Plain(depth=12, phi=nn.gelu), DENSE),
    "ReLU with biases of 0.1": Case(Plain(depth=6, bias=init.constant(0.1)), DENSE),
    "orthogonal, linear, depth 6": Case(
        Plain(depth=6, kernel=init.orthogonal(), phi=lambda x: x), DENSE
    ),
    "LayerNorm, LeCun, depth 20": Case(Plain(kernel=LECUN, norm=nn.LayerNorm), DENSE),
    "LayerNorm, stddev 1, depth 12": Case(
        Plain(depth=12, kernel=init.normal(1.0), norm=nn.LayerNorm), DENSE
    ),
    "BatchNorm without skips, depth 40": Case(
        Plain(depth=40, norm=batch_norm), DENSE, E
    ),
    "BatchNorm, depth 6": Case(Plain(depth=6, norm=batch_norm), DENSE),
    "BatchNorm without skips, depth 17, as VGG": Case(
        Plain(depth=17, norm=batch_norm), DENSE
    ),
    "BatchNorm, one example": Case(Plain(depth=6, norm=batch_norm), DENSE[:1], V),
    "all weights equal": Case(
        Plain(depth=4, kernel=init.constant(1 / 64)), DENSE, ("symmetric_units",)
    ),
    "inputs of 0 to 255": Case(Plain(depth=5), 128 + 74 * DENSE, ("output_scale",)),
    "width 6, depth 40": Case(
        Plain(depth=40, width=6), DENSE, ("dead_networks", "vanishing")
    ),
    "width 2, depth 12: dead networks": Case(
        Plain(depth=12, width=2), DENSE, ("dead_networks", "vanishing")
    ),
    "He in float16, depth 8": Case(Plain(depth=8, dtype=jnp.float16), DENSE),
    "He in bfloat16, depth 8": Case(Plain(depth=8, dtype=jnp.bfloat16), DENSE),
    "gain 40 in float16, depth 8": Case(
        Plain(depth=8, kernel=scaled(40.0), dtype=jnp.float16),
        DENSE,
        ("precision", "nonfinite"),
    ),
    "stddev 1e-3 in float16": Case(
        Plain(depth=6, kernel=init.normal(1e-3), dtype=jnp.float16),
        DENSE,
        ("precision", "vanishing"),
    ),
    "LayerNorm in float16, depth 8": Case(
        Plain(depth=8, norm=nn.LayerNorm, dtype=jnp.float16), DENSE
    ),
    "inputs of 3e-7 in float16": Case(
        Plain(depth=6, dtype=jnp.float16), 3e-7 * DENSE, ("precision",)
    ),
    "linear, width 8, depth 100": Case(
        Plain(depth=100, width=8, kernel=LECUN, phi=lambda x: x), DENSE, V
    ),
    "orthogonal, linear, depth 30": Case(
        Plain(depth=30, kernel=init.orthogonal(), phi=lambda x: x), DENSE
    ),
    # plain, convolutions
    "He, 3x3, 16 px, depth 10": Case(PlainConv(), IMAGE),
    "Glorot, 3x3, 16 px, depth 16": Case(
        PlainConv(depth=16, kernel=init.glorot_normal()), IMAGE, V
    ),
    "He, 9x9 on 4 px: all padding": Case(
        PlainConv(depth=8, window=9), normal(4, 4, 4, 3), V
    ),
    "BatchNorm, 3x3, mean over positions": Case(
        PlainConv(depth=5, norm=batch_norm), IMAGE
    ),
    "He, max pooling, depth 6": Case(PlainConv(depth=6, pool_every=2), IMAGE),
    "asv, F34": Case(
        lw.zoo.f34(width=8, image_size=32), None, (), {"scheme": "asv_forward"}
    ),
    "Glorot, F34": Case(
        lw.zoo.f34(width=8, image_size=32), None, V, {"scheme": "glorot"}
    ),
    # other architectures
    "U-Net, He": Case(UNet(), IMAGE),
    "U-Net, stddev 0.01": Case(UNet(kernel=init.normal(0.01)), IMAGE, V),
    "depthwise, He": Case(Depthwise(), IMAGE),
    "depthwise, fan-out of all channels": Case(
        Depthwise(kernel=init.variance_scaling(2 / 24, "fan_out", "normal")), IMAGE, V
    ),
    "all before side by side, He": Case(Growing(), IMAGE),
    "all before side by side, stddev 0.5": Case(
        Growing(kernel=init.normal(0.5)), IMAGE, E
    ),
    "directions of length sqrt 2": Case(Directions(), DENSE),
    "directions of length 0.3": Case(Directions(length=0.3), DENSE, V),
    "mixer, pre-norm, stddev 1e-3": Case(Mixer(kernel=init.normal(1e-3)), TOKENS),
    "mixer, plain, stddev 0.02": Case(
        Mixer(kernel=init.normal(0.02), plain=True), TOKENS, V
    ),
    "sines, weights / 30": Case(Siren(), PLACES),
    "sines, LeCun": Case(Siren(kernel=LECUN), PLACES, E),
    "NNX, He, depth 16": Case(NnxPlain(HE), DENSE),
    "NNX, LeCun, ReLU, depth 16": Case(NnxPlain(LECUN), DENSE, V),
    # residual
    "residual, no norm, He, 16 blocks": Case(Residual(), DENSE, E),
    "residual, branches / sqrt(16)": Case(Residual(scale=0.25), DENSE),
    "residual, pre-norm": Case(Residual(norm=nn.LayerNorm), DENSE),
    "residual, zero-initialized branches": Case(Residual(last=init.zeros), DENSE),
    "residual convolutions, branches x 0": Case(Scaled(), IMAGE),
    "residual convolutions, branches x 3": Case(Scaled(scale=3.0), IMAGE, E),
    "residual, pre-norm, stddev 1": Case(
        Residual(norm=nn.LayerNorm, kernel=init.normal(1.0)),
        DENSE,
        ("exploding", "vanishing"),
    ),
    "ResNet-14, batch norm": Case(
        lw.zoo.create("cifar_resnet", depth=14, width=8, image_size=16),
        IMAGE,
        (),
        {"kwargs": {"train": True}},
    ),
    # transformers
    "ViT-like, pre-norm": Case(Transformer(), TOKENS),
    "ViT-like, pre-norm, depth 48, scanned": Case(
        Transformer(depth=48, scan=True), TOKENS
    ),
    "ViT-like, scores not scaled, gain 4": Case(
        Transformer(options=blocks(scaled="", kernel=scaled(4.0), heads=1)),
        TOKENS,
        ("attention_saturation",),
    ),
    "causal, scores divided after the product": Case(
        Transformer(
            depth=2,
            options=blocks(scaled="scores", causal=True),
            vocabulary=50,
            embedding=init.normal(0.02),
        ),
        WORDS,
    ),
    "causal, normalized queries and keys, scores not divided": Case(
        Transformer(
            depth=2,
            options=blocks(scaled="", causal=True, normalized=True, heads=1),
        ),
        TOKENS,
        ("attention_saturation",),
    ),
    "ViT-like, stddev 1": Case(
        Transformer(options=blocks(kernel=init.normal(1.0))),
        TOKENS,
        ("attention_saturation", "exploding", "vanishing"),
    ),
    "post-norm, depth 4": Case(Transformer(options=blocks(post=True)), TOKENS),
    "post-norm, gain 4, depth 48, scanned": Case(
        Transformer(depth=48, scan=True, options=blocks(post=True, kernel=scaled(4.0))),
        TOKENS,
        V + E,
    ),
    "language model, embeddings of 0.02, tied": Case(
        Transformer(vocabulary=50, depth=2, embedding=init.normal(0.02)), WORDS
    ),
    "language model, embeddings of 3, tied": Case(
        Transformer(vocabulary=50, depth=2, embedding=init.normal(3.0)),
        WORDS,
        ("output_scale",),
    ),
    # recurrent
    "GRU, 12 steps": Case(Recurrent(), TIME),
    "LSTM, 12 steps": Case(Recurrent(cell=nn.OptimizedLSTMCell), TIME),
    "LSTM, recurrent stddev 20": Case(
        Recurrent(cell=nn.OptimizedLSTMCell, recurrent=init.normal(20.0)),
        TIME,
        ("saturation",),
    ),
    "GRU, recurrent stddev 20": Case(
        Recurrent(recurrent=init.normal(20.0)), TIME, ("saturation",)
    ),
    "RNN, orthogonal, small inputs": Case(
        Recurrent(cell=nn.SimpleCell, kernel=scaled(0.01)), TIME
    ),
    "RNN, linear, orthogonal x 1.5": Case(
        Recurrent(cell=nn.SimpleCell, recurrent=init.orthogonal(1.5), phi=lambda x: x),
        normal(8, 24, 16),
        E,
    ),
    "RNN, tanh, orthogonal x 1.5": Case(
        Recurrent(cell=nn.SimpleCell, recurrent=init.orthogonal(1.5)), TIME
    ),
    "RNN, ReLU, identity": Case(
        Recurrent(
            cell=nn.SimpleCell,
            recurrent=lambda key, shape, dtype: jnp.eye(shape[0], dtype=dtype),
            phi=nn.relu,
            kernel=init.normal(0.03),
        ),
        TIME,
    ),
    "RNN, recurrent gain 0.1": Case(
        Recurrent(cell=nn.SimpleCell, recurrent=scaled(0.1)), TIME, ("short_memory",)
    ),
    "RNN, ReLU, recurrent gain 8": Case(
        Recurrent(cell=nn.SimpleCell, recurrent=scaled(8.0), phi=nn.relu), TIME, E
    ),
    # shared weights
    "tied, He, depth 12": Case(Tied(), DENSE),
    "tied, gain 8, depth 12": Case(Tied(kernel=scaled(8.0)), DENSE, E),
}
