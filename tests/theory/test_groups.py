"""Grouped convolutions of channels that are not alike."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from layerwise.theory.predict import predict
from layerwise.theory.rules import groups
from tests.theory.ensemble import measure, misses


class Halves(nn.Module):
    """Reads more of what one half is made into than of the other."""

    of_each: int

    @nn.compact
    def __call__(self, x):
        small = 0.1 * nn.Conv(8, (3, 3))(x)
        x = jnp.concatenate([nn.relu(nn.Conv(8, (3, 3))(x)), small], -1)
        x = nn.Conv(32, (3, 3), feature_group_count=16 // self.of_each)(x)
        return nn.Dense(3)(nn.gelu(x[..., 12:]).mean((1, 2)))


@pytest.mark.parametrize("of_each", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_unlike_halves_stay_apart(of_each, key, monkeypatch):
    model, x = Halves(of_each), jax.random.normal(key, (2, 6, 6, 3))
    prediction = predict(model, None, x, draws=0)
    drawn = measure(prediction, lambda k: model.init(k, x), x, draws=1024)
    assert not misses(prediction, drawn)
    monkeypatch.setattr(groups, "runs", lambda state, fan: [state])
    assert misses(predict(model, None, x, draws=0), drawn)


def test_a_group_of_unlike_channels_is_refused(key):
    class Across(nn.Module):
        @nn.compact
        def __call__(self, x):
            two = nn.relu(nn.Conv(2, (1, 1))(x))
            x = jnp.concatenate([nn.Conv(6, (3, 3))(x), two], -1)
            return nn.Conv(8, (3, 3), feature_group_count=2)(x)

    x = jax.random.normal(key, (2, 6, 6, 3))
    prediction = predict(Across(), None, x, draws=0)
    assert any("unlike" in reason for reason in prediction.sampled.values())
