"""Gates: whose factor is a mean over positions, and behind which a power is taken."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layerwise.theory import profile
from layerwise.theory.predict import predict
from layerwise.theory.response import NO_RESPONSE
from layerwise.theory.rules import products
from tests.theory.ensemble import measure, misses


class Excited(nn.Module):
    """Blocks x + y s(y), with the activation behind the sum."""

    blocks: int
    act: Callable

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.he_normal()
        x = nn.Conv(16, (3, 3), kernel_init=init)(x)
        for _ in range(self.blocks):
            y = nn.Conv(16, (3, 3), kernel_init=init)(nn.relu(x))
            squeezed = nn.relu(nn.Dense(8)(y.mean((1, 2))))
            scale = nn.sigmoid(nn.Dense(16)(squeezed))
            x = x + y * scale[:, None, None]
        return nn.Dense(3)(self.act(x).mean((1, 2)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("act", "blocks"), [(nn.relu, 2), (nn.silu, 1)], ids=["relu", "silu"]
)
def test_the_gate_is_told_what_slopes_behind_follow(act, blocks, key, monkeypatch):
    model, x = Excited(blocks, act), jax.random.normal(key, (4, 8, 8, 3))
    prediction = predict(model, None, x, draws=0)
    drawn = measure(prediction, lambda k: model.init(k, x), x, draws=512)
    assert not misses(prediction, drawn)
    gates = [
        i
        for i, s in enumerate(prediction.sites)
        if s.kind == "v" and s.path == "Dense_1"
    ]
    (i,) = gates
    values = drawn["backward"][prediction.sites[i].value]
    error = 5 * values.std(ddof=1) / np.sqrt(len(values)) / values.mean()
    monkeypatch.setattr(profile, "pairs_of_factor", lambda *_: None)
    without = predict(model, None, x, draws=0)
    off = [
        abs(np.log(p.second["backward"][i] / values.mean()))
        for p in (prediction, without)
    ]
    assert off[0] < error + 0.05
    assert off[1] > error


class Squared(nn.Module):
    """A gated layer, and the square of what is made of it."""

    act: Callable

    @nn.compact
    def __call__(self, x):
        dense = functools.partial(
            nn.Dense, 24, use_bias=False, kernel_init=nn.initializers.lecun_normal()
        )
        x = dense()(x)
        gated = self.act(dense(name="gate")(x)) * dense(name="up")(x)
        return dense()(jnp.square(dense()(gated)))


@pytest.mark.parametrize(
    "act",
    [lambda x: x, pytest.param(nn.silu, marks=pytest.mark.slow)],
    ids=["bilinear", "silu"],
)
def test_a_factor_is_told_that_its_cotangent_goes_with_the_power(act, key, monkeypatch):
    model, x = Squared(act), jax.random.normal(key, (2, 24))
    prediction = predict(model, None, x, draws=0)
    drawn = measure(prediction, lambda k: model.init(k, x), x, draws=4096)
    factors = [i for i, s in enumerate(prediction.sites) if s.path in ("gate", "up")]
    monkeypatch.setattr(products, "times", lambda *_: (0.0, NO_RESPONSE))
    without = predict(model, None, x, draws=0)
    assert len(factors) >= 2
    for i in factors:
        values = drawn["backward"][prediction.sites[i].value]
        error = 5 * values.std(ddof=1) / np.sqrt(len(values)) / values.mean()
        off, before = (
            abs(np.log(p.second["backward"][i] / values.mean()))
            for p in (prediction, without)
        )
        assert off < 0.25 * before + error
        assert before > error
