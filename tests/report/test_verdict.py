"""The verdict on networks whose state is known: half of them well, half of them not."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import layerwise as lw
from layerwise.report.evidence import Evidence


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
    scaled_scores: bool = True
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
        if self.scaled_scores:
            q = q / q.shape[-1] ** 0.5
        weights = nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k))
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
    "inputs of 0 to 255": Case(Plain(depth=5), 128 + 74 * DENSE, ("output_scale",)),
    "width 6, depth 40": Case(Plain(depth=40, width=6), DENSE, V),
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
    # plain, convolutions
    "He, 3x3, 16 px, depth 10": Case(PlainConv(), IMAGE),
    "Glorot, 3x3, 16 px, depth 16": Case(
        PlainConv(depth=16, kernel=init.glorot_normal()), IMAGE, V
    ),
    "He, 9x9 on 4 px: all padding": Case(
        PlainConv(depth=8, window=9), normal(4, 4, 4, 3), V
    ),
    "He, max pooling, depth 6": Case(PlainConv(depth=6, pool_every=2), IMAGE),
    "asv, F34": Case(
        lw.zoo.f34(width=8, image_size=32), None, (), {"scheme": "asv_forward"}
    ),
    "Glorot, F34": Case(
        lw.zoo.f34(width=8, image_size=32), None, V, {"scheme": "glorot"}
    ),
    # residual
    "residual, no norm, He, 16 blocks": Case(Residual(), DENSE, E),
    "residual, branches / sqrt(16)": Case(Residual(scale=0.25), DENSE),
    "residual, pre-norm": Case(Residual(norm=nn.LayerNorm), DENSE),
    "residual, zero-initialized branches": Case(Residual(last=init.zeros), DENSE),
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
        Transformer(options=blocks(scaled_scores=False, kernel=scaled(4.0), heads=1)),
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
    "GRU, recurrent stddev 20": Case(
        Recurrent(recurrent=init.normal(20.0)), TIME, ("saturation",)
    ),
    "RNN, orthogonal, small inputs": Case(
        Recurrent(cell=nn.SimpleCell, kernel=scaled(0.01)), TIME
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


CHEAP = (
    "LeCun, ReLU, depth 4",
    "stddev 0.01 everywhere",
    "stddev 1 everywhere",
)


def diagnosis_of(case: Case) -> lw.Diagnosis:
    report = lw.propagate_variance(
        case.model, None, case.inputs, draws=8, **(case.options or {})
    )
    return lw.diagnose(report)


def test_half_of_the_cases_are_well():
    well = sum(not case.sick for case in CASES.values())
    assert len(CASES) >= 40
    assert 0.4 <= well / len(CASES) <= 0.6


@pytest.mark.parametrize(
    "name",
    [n if n in CHEAP else pytest.param(n, marks=pytest.mark.slow) for n in CASES],
)
def test_verdict(name):
    case = CASES[name]
    found = diagnosis_of(case)
    assert found.verdict == ("sick" if case.sick else "healthy"), str(found)
    if case.sick:
        kinds = {f.kind for f in found if f.severity == "sick"}
        assert kinds & set(case.sick), str(found)
        assert all(f.reason and f.fix for f in found if f.severity == "sick")


class Tiny(nn.Module):
    """Three hidden layers, so that the trunk has a slope."""

    @nn.compact
    def __call__(self, x):
        for _ in range(3):
            x = nn.relu(nn.Dense(32, kernel_init=HE)(x))
        return nn.Dense(4)(x)


@pytest.fixture(scope="module")
def measured() -> lw.Measurement:
    return lw.measure(Tiny(), None, normal(8, 16), draws=8)


def changed(m: lw.Measurement, direction: str, factor: np.ndarray) -> lw.Measurement:
    """The measurement with each site's second moment multiplied by `factor`."""
    mean, variance = dict(m.mean), dict(m.variance)
    mean[direction] = mean[direction] * np.sqrt(factor)
    variance[direction] = variance[direction] * factor
    return dataclasses.replace(m, mean=mean, variance=variance)


def rows(m: lw.Measurement, keep: slice) -> lw.Measurement:
    cut = {d: x[keep] for d, x in m.mean.items()}
    var = {d: x[keep] for d, x in m.variance.items()}
    return dataclasses.replace(
        m, mean=cut, variance=var, draws=m.draws[keep],
        read={d: x[keep] for d, x in m.read.items()},
        weight_variance=m.weight_variance[keep], bias_variance=m.bias_variance[keep],
    )  # fmt: skip


def test_a_healthy_network_is_called_healthy(measured):
    found = lw.diagnose(measured)
    assert found.healthy, str(found)
    assert lw.assert_healthy(measured) == found


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize(("factor", "kind"), [(1e-1, "vanishing"), (1e1, "exploding")])
def test_drift_is_found_with_its_rate_and_first_layer(
    measured, direction, factor, kind
):
    layers = np.array([s.layer for s in measured.sites], float)
    if direction == "backward":
        layers = 4 - layers
    sick = changed(measured, direction, factor ** (1.5 * layers))
    found = lw.diagnose(sick)
    assert (found.verdict, found[0].kind, found[0].direction) == (
        "sick", kind, direction,
    )  # fmt: skip
    rate = found[0].evidence["per layer"]
    assert rate.value == pytest.approx(factor**1.5, rel=0.5)
    assert 0 < rate.sem < rate.value
    assert found[0].path == ("Dense_2" if direction == "forward" else "Dense_0")


def test_the_network_that_was_passed_in_is_judged_too(measured):
    layers = np.array([s.layer for s in measured.sites], float)
    sick = changed(measured, "forward", 0.01**layers)
    first = lambda a, b: {d: np.r_[a[d][:1], b[d][1:]] for d in a}
    mixed = dataclasses.replace(
        measured,
        draws=np.array([-1, *range(7)]),
        mean=first(sick.mean, measured.mean),
        variance=first(sick.variance, measured.variance),
    )
    found = lw.diagnose(mixed)
    assert found.verdict == "sick"
    assert found[0].reason.startswith("in the network that was passed in, ")


def test_dead_channels_and_rank_collapse_where_they_were_measured(measured):
    shape = measured.mean["forward"].shape
    depth = np.array([s.layer for s in measured.sites], float)
    values = {
        "dead_fraction": np.where(depth == 2, 0.7, 0.0) * np.ones(shape),
        "zero_fraction": np.full(shape, 0.5),
        "cosine_examples": 1 - 30.0**-depth * np.ones(shape),
    }
    other = {name: dict.fromkeys(measured.mean, x) for name, x in values.items()}
    found = lw.diagnose(dataclasses.replace(measured, other=other))
    assert "not looked for" not in found.basis
    by_kind = {f.kind: f for f in found}
    assert found.verdict == "sick"
    assert by_kind["rank_collapse"].severity == "sick"
    assert by_kind["rank_collapse"].path == "Dense_1"
    assert by_kind["dead_units"].severity == "warning"
    assert by_kind["dead_units"].path == "Dense_1"
    assert "not looked for" in lw.diagnose(measured).basis


def test_few_networks_cannot_show_health(measured):
    for keep in (slice(0, 1), slice(0, 3)):
        found = lw.diagnose(rows(measured, keep))
        assert found.verdict == "undecided"
        assert found[0].kind == "evidence"
        assert "draws=" in found[0].fix


def test_a_change_at_the_tolerance_is_undecided(measured):
    """Where the interval of two standard errors holds the tolerance, nobody knows."""
    q = Evidence(measured).hidden("forward")
    at_last = float(np.exp(np.abs(q.log - q.log[0]).max()))
    found = lw.diagnose(measured, tolerance=max(1.02 * at_last, 1.01))
    assert found.verdict == "undecided", str(found)


def test_nonfinite_names_layer_and_direction(measured):
    at = measured.find("u", 2)
    factor = np.ones(len(measured.sites))
    factor[at:] = np.inf
    found = lw.diagnose(changed(measured, "forward", factor))
    assert found.verdict == "sick"
    assert (found[0].kind, found[0].path, found[0].direction) == (
        "nonfinite", "Dense_1", "forward",
    )  # fmt: skip


def test_assert_healthy_says_what_where_and_what_to_type(measured):
    layers = np.array([s.layer for s in measured.sites], float)
    sick = changed(measured, "forward", 0.01**layers)
    with pytest.raises(lw.errors.UnhealthyError) as caught:
        lw.assert_healthy(sick)
    assert isinstance(caught.value, AssertionError)
    text = str(caught.value)
    for words in ("Tiny is SICK (8 networks", "vanishing forward at", "evidence:",
                  "Begin with: params = lw.initialize("):  # fmt: skip
        assert words in text


def test_one_layer_is_no_evidence():
    found = lw.diagnose(lw.measure(nn.Dense(4), None, normal(4, 8), draws=4))
    assert found.verdict == "undecided"
    assert "single layer" in found[0].reason


def test_tolerance_is_checked(measured):
    with pytest.raises(lw.errors.InvalidArgumentError, match="tolerance=100"):
        lw.diagnose(measured, tolerance=0.5)
