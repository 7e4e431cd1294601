"""What a normalization over channels settles, and activations of unlike kinds."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layerwise.theory import few_weights, local, marginal
from layerwise.theory.predict import predict
from layerwise.theory.rules import normalization
from layerwise.theory.settled import UNSETTLED, Settled
from tests.theory.ensemble import measure, misses


def square(x):
    return 0.3 * jnp.square(x)


@pytest.mark.parametrize(
    ("mean", "left"), [(False, 3.0), (True, 3.0 - 8.0 / np.pi)], ids=["RMS", "layer"]
)
def test_what_relu_of_a_normalized_value_leaves(mean, left):
    z, w = marginal.nodes(), marginal.weights()
    got = Settled(1.0, mean).behind(lambda x: np.maximum(x, 0.0), z, w)
    assert 5.0 * (1.0 - got.squares) == pytest.approx(left, rel=1e-3)


def test_a_multiple_settles_as_much():
    z, w = marginal.nodes(), marginal.weights()
    for x in (z, z**2):
        got = Settled(1.0).behind(lambda v: -3.0 * v, x, w)
        assert got.squares == pytest.approx(1.0, abs=1e-3)


class Normalized(nn.Module):
    """Squares of weights times an activation of what is normalized."""

    norm: type[nn.Module] | None = None
    front: Callable | None = None
    act: Callable | None = None
    width: int = 16
    law: Literal["normal", "truncated_normal", "uniform"] = "truncated_normal"

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.variance_scaling(2.0, "fan_in", self.law)
        x = nn.Dense(self.width, kernel_init=init)(x)
        x = self.front(x) if self.front else x
        x = self.norm()(x) if self.norm else x
        x = self.act(x) if self.act else x
        return nn.Dense(3)(square(nn.Dense(self.width, kernel_init=init)(x)))


def both(model, key, draws=4096):
    x = jax.random.normal(key, (4, 24))
    prediction = predict(model, None, x, draws=0)
    drawn = measure(prediction, lambda k: model.init(k, x), x, draws=draws)
    return x, prediction, drawn


def off(prediction, drawn, kind, direction, which=0):
    """Returns how many standard errors a value of a kind is off."""
    i = [i for i, s in enumerate(prediction.sites) if s.kind == kind][which]
    values = drawn[direction][prediction.sites[i].value]
    error = values.std(ddof=1) / np.sqrt(len(values))
    return abs(prediction.second[direction][i] - values.mean()) / error


NETWORKS = {
    "RMS": Normalized(nn.RMSNorm),
    "RMS of squares": Normalized(nn.RMSNorm, square, width=96),
    "squares of RMS of squares": Normalized(nn.RMSNorm, square, square, width=96),
    "ReLU of RMS": Normalized(nn.RMSNorm, None, nn.relu),
    "layer": Normalized(nn.LayerNorm),
    "ReLU of layer": Normalized(nn.LayerNorm, None, nn.relu),
    "GELU of layer": Normalized(nn.LayerNorm, None, nn.gelu),
    "ReLU of layer of ReLU": Normalized(nn.LayerNorm, nn.relu, nn.relu, width=24),
}


@pytest.mark.parametrize(
    "name",
    [
        n if n in ("RMS", "ReLU of layer") else pytest.param(n, marks=pytest.mark.slow)
        for n in NETWORKS
    ],
)
def test_normalized_networks(name, key):
    _, prediction, drawn = both(NETWORKS[name], key)
    assert not misses(prediction, drawn)


@pytest.mark.slow
def test_channels_that_are_normalized_do_not_fluctuate(key, monkeypatch):
    model = NETWORKS["RMS of squares"]
    x, prediction, drawn = both(model, key)
    assert off(prediction, drawn, "v", "forward", -1) < 5
    monkeypatch.setattr(normalization, "_settled", lambda *args: UNSETTLED)
    assert off(predict(model, None, x, draws=0), drawn, "v", "forward", -1) > 5


@pytest.mark.slow
def test_a_value_with_a_mean_is_part_of_what_it_is_divided_by(key, monkeypatch):
    model = NETWORKS["squares of RMS of squares"]
    x, _, drawn = both(model, key, 1024)
    monkeypatch.setattr(normalization, "_self_normalized", lambda x, count: x)
    assert misses(predict(model, None, x, draws=0), drawn)


@pytest.mark.parametrize(
    "what", [pytest.param("alignment", marks=pytest.mark.slow), "level"]
)
def test_along_the_value_channels_add_up(what, key, monkeypatch):
    model = Normalized(nn.LayerNorm, None, nn.relu, law="normal")
    x, prediction, drawn = both(model, key)
    assert off(prediction, drawn, "u", "backward") < 5
    pulled = normalization._pulled

    def without(found, extent, f, y, ct, stats):
        response = dataclasses.replace(ct.response, **{what: 0.0})
        return pulled(found, extent, f, y, ct.replace(response=response), stats)

    monkeypatch.setattr(normalization, "_pulled", without)
    assert off(predict(model, None, x, draws=0), drawn, "u", "backward") > 5


def test_relu_in_front_of_squares(key, monkeypatch):
    model = Normalized(act=nn.relu, width=32, law="normal")
    x, prediction, drawn = both(model, key)
    assert off(prediction, drawn, "u", "backward") < 5
    monkeypatch.setattr(local, "two_slopes", lambda run, after, *_: (0.0, after))
    assert off(predict(model, None, x, draws=0), drawn, "u", "backward") > 5


@pytest.mark.parametrize(
    "law", [pytest.param("truncated_normal", marks=pytest.mark.slow), "uniform"]
)
def test_squares_of_sums_that_are_nearly_normal(law, key, monkeypatch):
    model = Normalized(act=nn.relu, law=law)
    x, prediction, drawn = both(model, key)
    assert off(prediction, drawn, "v", "forward", -1) < 5
    monkeypatch.setattr(few_weights, "law_of_sum", lambda law, terms: (None, 0.0))
    assert off(predict(model, None, x, draws=0), drawn, "v", "forward", -1) > 5


class Chain(nn.Module):
    """Blocks of a dense layer, an activation and a normalization over its channels."""

    act: Callable
    norm: type[nn.Module]
    last: bool
    width: int

    @nn.compact
    def __call__(self, x):
        for _ in range(3):
            x = nn.Dense(self.width, kernel_init=nn.initializers.he_normal())(x)
            x = self.norm()(self.act(x)) if self.last else self.act(self.norm()(x))
        return nn.Dense(4)(x)


ROWS = [
    pytest.param(nn.LayerNorm, True, 48, marks=pytest.mark.slow),
    (nn.LayerNorm, False, 24),
    (nn.RMSNorm, False, 96),
]


@pytest.mark.parametrize(
    "act", [nn.relu, pytest.param(nn.gelu, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(("norm", "last", "width"), ROWS)
def test_rows_of_normalized_layers(norm, last, width, act, key):
    """What is large is divided by more: E[p/q] is less than E[p] E[1/q]."""
    _, prediction, drawn = both(Chain(act, norm, last, width), key)
    assert all(off(prediction, drawn, "u", "backward", n) < 5 for n in range(3))
