"""Batches whose examples differ: told apart where one average would not do."""

from collections.abc import Callable

import flax.linen as nn
import jax
import numpy as np
import pytest

import layerwise as lw
from layerwise.theory import examples


SCALES = np.array([0.1, 0.5, 2.0, 5.0])


class Mlp(nn.Module):
    phi: Callable = nn.gelu
    centred: bool = False

    @nn.compact
    def __call__(self, x):
        if self.centred:
            x = x - x.mean(axis=0)
        for _ in range(5):
            x = self.phi(nn.Dense(256)(x))
        return nn.Dense(64)(x)


@pytest.fixture
def batch(key):
    return np.asarray(SCALES[:, None] * jax.random.normal(key, (4, 32)))


def test_a_batch_is_the_average_of_its_examples(batch):
    whole = lw.predict(Mlp(), None, batch)
    alone = [lw.predict(Mlp(), None, x[None]) for x in batch]
    for direction in ("forward", "backward"):
        want = np.mean([p.second[direction] for p in alone], axis=0)
        np.testing.assert_allclose(whole.second[direction], want, rtol=1e-12)
        want = np.mean([p.mean[direction] for p in alone], axis=0)
        np.testing.assert_allclose(whole.mean[direction], want, rtol=1e-9, atol=1e-12)
    assert "4 groups of examples" in whole.resolution


@pytest.mark.parametrize(
    "phi", [nn.gelu, pytest.param(nn.tanh, marks=pytest.mark.slow)]
)
def test_examples_of_different_size_are_predicted(batch, phi):
    model = Mlp(phi)
    predicted = lw.predict(model, None, batch)
    measured = lw.measure(model, None, batch, draws=128)
    for direction in ("forward", "backward"):
        got = predicted.curve(direction)
        draws = measured.curve(direction)
        sem = draws.std(axis=0, ddof=1) / np.sqrt(len(draws))
        off = np.abs(np.log(got) - np.log(draws.mean(axis=0)))
        stated = predicted.curve_tolerance(direction)
        assert np.all(off <= 5 * sem / got + stated + 1e-6)
        assert stated.max() < 0.05


def test_what_the_model_does_to_the_whole_batch_is_done_to_the_whole(batch):
    inside = lw.predict(Mlp(centred=True), None, batch)
    outside = lw.predict(Mlp(), None, batch - batch.mean(axis=0))
    for direction in ("forward", "backward"):
        a, b = inside.curve(direction)[1:], outside.curve(direction)[1:]
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("phi", [nn.relu, nn.leaky_relu])
def test_homogeneous_functions_need_no_groups(batch, phi):
    assert "groups" not in lw.predict(Mlp(phi), None, batch).resolution


def test_examples_that_are_normalized_together_stay_together(batch):
    class Normalized(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.BatchNorm(use_running_average=False)(nn.Dense(64)(x))
            return nn.Dense(8)(nn.tanh(x))

    assert "groups" not in lw.predict(Normalized(), None, batch).resolution


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["kernel_forward", "kernel_backward"])
def test_scales_are_those_of_the_average_over_examples(batch, scheme):
    law = lw.scheme_law(Mlp(), batch, scheme)
    direction = scheme.removeprefix("kernel_")
    measured = lw.measure(Mlp(), None, batch, draws=128, redraw=law).curve(direction)
    inner = measured[:, 1:] if direction == "forward" else measured[:, :-1]
    sem = inner.std(axis=0, ddof=1) / np.sqrt(len(inner))
    assert np.all(np.abs(inner.mean(axis=0) - 1.0) <= 5 * sem + 0.05)


@pytest.mark.parametrize(
    ("batch", "groups"), [(1, 1), (7, 7), (16, 8), (32, 8), (17, 1)]
)
def test_groups_are_of_equal_size(batch, groups):
    assert examples._count(batch) == groups
