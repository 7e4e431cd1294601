"""Sums over positions of maps whose pairs are held at some lags alone."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from layerwise.theory import engine, lags
from layerwise.theory.predict import predict


class Net(nn.Module):
    """Convolutions, and the mean over the positions."""

    act: str

    @nn.compact
    def __call__(self, x):
        act = {"relu": nn.relu, "tanh": jnp.tanh}[self.act]
        variance = 2.0 if self.act == "relu" else 9.0
        init = nn.initializers.variance_scaling(variance, "fan_in", "normal")
        for _ in range(4):
            x = act(nn.Conv(48, (3, 3), kernel_init=init)(x))
        return nn.Dense(3)(x.mean((1, 2)))


def waves(size):
    """Images that correlate far, with borders like any other place."""
    grid = np.arange(size) / size
    x = np.sin(6.0 * grid[:, None, None] + np.array([0.0, 2.0, 4.0]))
    x = x + np.cos(9.0 * grid[None, :, None])
    return x[None].astype(np.float32)


@pytest.mark.parametrize("level", [lags.FEWEST, lags.SPARSE, lags.DENSE])
def test_sums_between_lags_are_off_by_no_more_than_stated(level, monkeypatch):
    def held(to):
        monkeypatch.setattr(engine, "held_lags", lambda *_: (to, 1e9))
        return predict(Net("relu"), None, waves(20))

    every, some = held(lags.FULL), held(level)
    last = every.find("u", 5)
    change = some.log_second["forward"][last] - every.log_second["forward"][last]
    more = some.tolerance["forward"][last] - every.tolerance["forward"][last]
    assert abs(change) < more
    assert more < 0.2


def test_positions_that_cancel_are_not_summed_by_rule():
    got = predict(Net("tanh"), None, waves(20), draws=0)
    assert np.isnan(got.second["forward"][got.find("u", 5)])
    (reason,) = got.sampled.values()
    assert "positions that cancel each other" in reason
