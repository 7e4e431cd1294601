"""Batches whose examples differ: told apart where one average would not do."""

from collections.abc import Callable

import flax.linen as nn
import jax
import numpy as np
import pytest

import layerwise as lw
from layerwise.theory import examples, marginal, pointwise
from layerwise.theory.state import Field


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


def test_slopes_of_an_example_that_is_zero_are_those_at_zero(batch):
    batch = batch * np.array([[1.0], [0.0], [1.0], [1.0]])
    whole = lw.predict(Mlp(nn.relu), None, batch)
    assert not whole.sampled
    one = lw.predict(Mlp(nn.relu), None, batch[:1])
    # relu'(0) = 0: nothing comes back through it in a quarter of the batch.
    share = np.where(np.arange(len(whole.sites)) < len(whole.sites) - 2, 0.75, 1.0)
    want = share * one.second["backward"]
    np.testing.assert_allclose(whole.second["backward"], want, rtol=1e-9)


class Pooled(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.gelu(nn.Conv(8, (3, 3))(x))
        return nn.Dense(4)(nn.Dense(16)(nn.max_pool(x, (2, 2), (2, 2))).mean((1, 2)))


@pytest.mark.slow
@pytest.mark.parametrize("draws", [0, 8])
def test_what_no_rule_makes_of_one_example_is_sampled_or_left_out(key, draws):
    x = np.array(jax.random.normal(key, (4, 8, 8, 3)))
    full = lw.predict(Pooled(), None, x, draws=draws)
    assert not full.sampled
    x[2] = 0.0
    got = lw.predict(Pooled(), None, x, draws=draws)
    (reason,) = got.sampled.values()
    assert reason == "pooling of zeros, for some examples"
    grades = {g and g.label for g in got.grade["forward"][-2:]}
    assert grades == {"measured"} if draws else grades == {None}
    np.testing.assert_allclose(
        got.second["forward"][1], 0.75 * full.second["forward"][1], rtol=0.2
    )


@pytest.mark.slow
@pytest.mark.parametrize("phi", [nn.gelu, nn.tanh])
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


@pytest.mark.slow
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


def test_pairs_of_a_curved_function_are_averaged_over_what_examples_have():
    # Two positions and two examples, all independent but for the power of an example.
    powers = np.array([0.1, 1.9])
    table = np.zeros((2, 3, 2))
    table[0, 1] = 1.0
    lags = ((-1, 0, 1),)
    field = Field(np.zeros(2), table, lags, spread=np.var(powers), powers=powers)
    elu = lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0.0)))
    got = pointwise.Pointwise(field).apply(elu)
    z, w = marginal.nodes(), marginal.weights()
    means = np.array([w @ elu(np.sqrt(t) * z) for t in powers])
    seconds = np.array([w @ elu(np.sqrt(t) * z) ** 2 for t in powers])
    unit = np.exp(got.log_scale)
    inside = ([0, 2], [1, 0])  # the lags -1 at position 1 and 1 at position 0
    assert got.second * unit == pytest.approx(np.full(2, seconds.mean()))
    same, apart = (got.table[c][inside] * unit for c in (0, 1))
    assert same == pytest.approx(np.full(2, np.mean(means**2)))
    assert apart == pytest.approx(np.full(2, np.mean(means) ** 2))
    assert np.mean(means**2) > 1.2 * np.mean(means) ** 2
