"""Sums over few weights that are not normal."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import layerwise as lw
from layerwise.theory import marginal
from layerwise.theory.few_weights import law_of_sum


UNIFORM = marginal.of_samples((np.arange(2**16) + 0.5) / 2**15 - 1.0)


@pytest.mark.parametrize("x", [[1.0, 0.3], [1.0, 1.0], [1.0, 0.8, 0.2], [1.0, 0.5]])
def test_the_law_has_the_kurtosis_of_the_sum(x):
    squares = np.square(x)
    terms = squares.sum() ** 2 / np.square(squares).sum()
    law, peaked = law_of_sum(UNIFORM, terms)
    assert law is not None
    assert peaked == 0.0
    w = marginal.weights()
    assert w @ law == pytest.approx(0.0, abs=1e-6)
    assert w @ law**2 == pytest.approx(1.0, rel=1e-6)
    assert w @ law**4 == pytest.approx(3.0 - 1.2 / terms, rel=5e-3)


def test_many_terms_are_normal():
    law, peaked = law_of_sum(UNIFORM, 7.0)
    assert law is None
    assert peaked == pytest.approx(-1.2 / 7.0, rel=1e-3)
    assert law_of_sum(None, 1.0) == (None, 0.0)


class Coordinates(nn.Module):
    """Sines of two coordinates, with uniform weights."""

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.variance_scaling(2.0, "fan_in", "uniform")
        x = jnp.sin(6 * nn.Dense(64, kernel_init=init)(x))
        return nn.Dense(32, kernel_init=init)(x)


def test_sines_of_two_coordinates(key, monkeypatch):
    x = 0.2 * jax.random.rademacher(key, (32, 2), jnp.float32)
    measured = lw.measure(Coordinates(), None, x, draws=1500).curve("forward")[:, 2]
    mean, sem = measured.mean(), measured.std(ddof=1) / np.sqrt(len(measured))

    def off():
        return abs(lw.predict(Coordinates(), None, x).curve("forward")[2] - mean)

    assert off() < 5 * sem
    monkeypatch.setattr(
        "layerwise.theory.few_weights.law_of_sum", lambda law, terms: (None, 0.0)
    )
    assert off() > 5 * sem
