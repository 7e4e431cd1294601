"""Values beside what a convolution of few channels makes of them."""

from collections.abc import Callable

import flax.linen as nn
import jax
import numpy as np
import pytest

import layerwise as lw
from helpers import assert_mean_close
from layerwise.theory import few_channels, fluctuation, pointwise
from layerwise.theory.predict import predict
from layerwise.theory.state import Field, Grade, State
from layerwise.tracing.connections import Axis
from tests.theory.ensemble import measure, misses


HE = nn.initializers.he_normal()
SIZE = 6


def alike_positions(alike, channels, slope=0.0):
    """Returns a function of two slopes of positions that correlate equally."""
    lags = (tuple(range(1 - SIZE, SIZE)),)
    kernel = alike + (1 - alike) * np.eye(SIZE)
    table = np.zeros((1, len(lags[0]), SIZE))
    for p, q in np.ndindex(SIZE, SIZE):
        table[0, q - p + SIZE - 1, p] = kernel[p, q]
    field = Field(np.zeros(SIZE), table, lags, symmetric=True)
    made = pointwise.Pointwise(field).apply(lambda x: np.maximum(x, slope * x))
    state = State(("b", "s", "c"), ((channels, made),), Grade.EXACT, Grade.EXACT)
    return state, np.linalg.cholesky(kernel + 1e-9 * np.eye(SIZE))


@pytest.mark.parametrize("alike", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("slope", [0.0, 0.2, 1.0])
def test_the_power_of_a_unit_has_the_law_of_a_mean_of_few_squares(slope, alike, key):
    state, root = alike_positions(alike, 64, slope)
    factors, chances = few_channels.of_units(state, [Axis(SIZE, 3)], 1)
    z = jax.random.normal(key, (20000, SIZE)) @ root.T
    squares = np.mean(np.maximum(z, slope * z)[:, :3] ** 2, axis=1)
    squares *= 2.0 / (1.0 + slope**2)
    assert chances @ factors == pytest.approx(1.0)
    # Of 64 units, a 64th of the variance is that of their mean.
    variance = chances @ np.square(factors - 1.0) * 64 / 63
    assert_mean_close(np.square(squares - 1.0), variance, bias=0.02 * variance)
    if slope:  # a gamma law has no zeros, as ReLU makes
        assert_mean_close(np.sqrt(squares), chances @ np.sqrt(factors), bias=0.02)


def test_wide_groups_have_less_apart():
    state, _ = alike_positions(0.5, 64)
    spreads = []
    for channels in (1, 4, 64):
        factors, chances = few_channels.of_units(state, [Axis(SIZE, 3)], channels)
        spreads.append(float(chances @ np.square(factors - 1.0)))
    assert spreads[0] > 3.0 * spreads[1] > 0.0
    assert spreads[2] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("alike", [0.0, 0.3, 0.7])
@pytest.mark.parametrize("channels", [1, 2])
def test_how_often_all_that_an_output_reads_is_zero(alike, channels, key):
    state, root = alike_positions(alike, channels)
    got = few_channels.emptiness(state, [Axis(SIZE, 3, pad=(1, 1))], channels)
    z = np.asarray(jax.random.normal(key, (4096, channels, SIZE))) @ root.T
    z = np.pad(z, ((0, 0), (0, 0), (1, 1)), constant_values=-1.0)
    negative = np.all(z < 0, axis=1)
    empty = negative[:, :-2] & negative[:, 1:-1] & negative[:, 2:]
    assert_mean_close(empty.mean(axis=1), got)


class Beside(nn.Module):
    """Blocks x + f(depthwise(x)), each behind a pointwise convolution."""

    activation: Callable = nn.relu
    norm: Callable | None = None
    kernel: int = 3
    sign: float = 1.0

    @nn.compact
    def __call__(self, x):
        n = 32
        norm = self.norm or (lambda: lambda x: x)
        x = norm()(self.activation(nn.Conv(n, (3, 3), kernel_init=HE)(x)))
        for _ in range(2):
            y = nn.Conv(n, (self.kernel,) * 2, feature_group_count=n, kernel_init=HE)(x)
            y = norm()(self.activation(y))
            x = x + y if self.sign > 0 else x - y
            x = norm()(self.activation(nn.Conv(n, (1, 1), kernel_init=HE)(x)))
        return nn.Dense(4)(x.mean((1, 2)))


CASES = {
    "relu": Beside(),
    "difference": Beside(sign=-1.0),
    "gelu": Beside(nn.gelu, kernel=5),
    "layer norm": Beside(nn.gelu, nn.LayerNorm, kernel=5),
    "batch norm": Beside(
        nn.gelu, lambda: nn.BatchNorm(use_running_average=False), kernel=5
    ),
}


@pytest.mark.parametrize(
    "name",
    [n if n == "relu" else pytest.param(n, marks=pytest.mark.slow) for n in CASES],
)
def test_a_value_is_large_where_what_a_depthwise_convolution_makes_of_it_is(name):
    x = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
    model = CASES[name]
    found = lw.predict(model, None, x, draws=0)
    got = lw.measure(model, None, x, draws=256, key=jax.random.key(1))
    sums = [i for i, s in enumerate(found.sites) if s.kind == "merge"]
    assert len(sums) == 2
    for i in sums:
        samples = got.second_moment("forward")[:, i]
        predicted = found.second["forward"][i]
        # Terms taken for independent are off by 4 to 20 % at each.
        assert_mean_close(samples, predicted, bias=0.015 * predicted)


@pytest.mark.parametrize(
    "name",
    [
        "relu",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("difference", "gelu")),
    ],
)
def test_a_cotangent_comes_back_with_what_its_own_branch_sends(name):
    x = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
    model = CASES[name]
    found = lw.predict(model, None, x, draws=0)
    got = lw.measure(model, None, x, draws=256, key=jax.random.key(1))
    last = max(i for i, s in enumerate(found.sites) if s.kind == "merge")
    block = found.sites[last].layer - 1
    first = [s.layer for s in found.sites].index(block)  # in front of the last block
    behind = got.second_moment("backward")[:, last]
    samples = got.second_moment("backward")[:, first]
    ratio = found.second["backward"][first] / found.second["backward"][last]
    assert_mean_close(samples / behind.mean(), ratio, bias=0.1 * ratio)


class Blocks(nn.Module):
    """Sums x + W relu(x), one behind the other."""

    @nn.compact
    def __call__(self, x):
        for _ in range(7):
            x = x + nn.Dense(16, use_bias=False, kernel_init=HE)(nn.relu(x))
        return nn.Dense(1)(x)


def test_what_units_that_stay_may_add_is_stated(key, monkeypatch):
    model, x = Blocks(), jax.random.normal(key, (2, 16))
    prediction = predict(model, None, x, draws=0)
    drawn = measure(prediction, lambda k: model.init(k, x), x, draws=2048)
    assert not misses(prediction, drawn)
    monkeypatch.setattr(fluctuation, "persisting", lambda *_: 0.0)
    assert misses(predict(model, None, x, draws=0), drawn)
    assert Grade.EXACT not in prediction.grade["backward"][:4]
