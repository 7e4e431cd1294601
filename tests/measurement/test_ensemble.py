"""Draws measured side by side: the same numbers however they are cut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import layerwise as lw
from layerwise.measurement import ensemble


def apply(params, x):
    for w in params:
        x = jnp.tanh(x @ w)
    return x


@pytest.fixture
def net(key):
    keys = jax.random.split(key, 3)
    return [jax.random.normal(k, (8, 8)) / 8**0.5 for k in keys]


def measure(net, **kwargs):
    x = jnp.linspace(-1, 1, 32).reshape(4, 8)
    return lw.measure(apply, net, x, draws=7, **kwargs)


def curves(m):
    return np.concatenate([m.curve("forward"), m.curve("backward")])


@pytest.mark.slow
def test_repeats_are_bit_identical(net):
    np.testing.assert_array_equal(curves(measure(net)), curves(measure(net)))


@pytest.mark.parametrize(
    "cut",
    [
        {"chunk": 1},
        pytest.param({"chunk": 3}, marks=pytest.mark.slow),
        pytest.param({"batch_size": 2}, marks=pytest.mark.slow),
    ],
)
def test_how_draws_are_cut_changes_only_rounding(net, cut):
    np.testing.assert_allclose(curves(measure(net, **cut)), curves(measure(net)), 1e-5)


def test_so_does_the_number_of_workers(net, monkeypatch):
    many = curves(measure(net, chunk=2))
    monkeypatch.setattr(ensemble, "workers", lambda: 1)
    np.testing.assert_array_equal(curves(measure(net, chunk=2)), many)


def test_an_interrupted_run_returns_what_is_done(net):
    seen = []

    def progress(done, total):
        seen.append((done, total))
        if done >= 4:
            raise KeyboardInterrupt

    m = measure(net, chunk=2, progress=progress)
    assert seen == [(2, 8), (4, 8)]
    assert m.draws_done == 3  # the network given, and three of the seven
    assert m.draws.tolist() == [-1, 0, 1, 2]


def test_calls_are_equal_and_one_for_every_worker(monkeypatch):
    monkeypatch.setattr(ensemble, "workers", lambda: 4)
    assert ensemble.chunk_size(17, None) == 5
    assert ensemble.chunk_size(3, None) == 1
    assert ensemble.chunk_size(1000, None) == 16
    assert ensemble.chunk_size(17, 16) == 9
