"""Second moments that fluctuate: their spread, and what it does at a finite width."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import layerwise as lw
from helpers import assert_mean_close
from layerwise.theory import fluctuation, pointwise
from layerwise.theory.predict import predict
from layerwise.theory.response import NO_RESPONSE, Response, log_normal
from layerwise.theory.state import Field, Grade, State
from layerwise.tracing.connections import Axis
from tests.theory.architectures import draw, example
from tests.theory.ensemble import measure, misses
from tests.theory.operations import Random


WIDTH, DEPTH, DRAWS = 24, 5, 4096
SHAPES = {
    f"w{i}": Random((WIDTH if i else 40, WIDTH), 2.0 / (WIDTH if i else 40))
    for i in range(DEPTH)
} | {"x": Random((WIDTH, 10), 1.0 / WIDTH)}


def dense(params, x, phi):
    for i in range(DEPTH):
        x = phi(x @ params[f"w{i}"])
    return x @ params["x"]


@functools.cache
def measured(name):
    x = jnp.asarray(jax.random.normal(jax.random.key(3), (2, 40)))
    model = functools.partial(dense, phi=getattr(jax.nn, name))
    prediction = predict(model, example(SHAPES), x)
    draws = measure(prediction, functools.partial(draw, SHAPES), x, draws=DRAWS)
    return model, x, prediction, draws


def errors(prediction, draws, direction):
    """Logarithm of predicted over measured, at the pre-activations."""
    return np.array(
        [
            np.log(prediction.second[direction][i] / draws[direction][s.value].mean())
            for i, s in enumerate(prediction.sites)
            if s.kind == "u"
        ]
    )


@pytest.mark.parametrize("name", [pytest.param("silu", marks=pytest.mark.slow), "gelu"])
def test_order_one_over_width_is_carried(name, monkeypatch):
    model, x, prediction, draws = measured(name)
    assert not misses(prediction, draws)
    # Without it the same engine is off, so that the test can fail.
    monkeypatch.setattr(fluctuation, "channel_noise", lambda state: 0.0)
    monkeypatch.setattr(
        fluctuation, "pulled_through", lambda *a, **k: (NO_RESPONSE, 0.0)
    )
    wide = predict(model, example(SHAPES), x)
    for direction in ("forward", "backward"):
        corrected = np.abs(errors(prediction, draws, direction))
        plain = np.abs(errors(wide, draws, direction))
        assert corrected.max() < 0.5 * plain.max(), direction
        assert plain.max() > 0.05, direction


def test_relu_needs_no_correction():
    *_, prediction, draws = measured("relu")
    assert not misses(prediction, draws)
    at = [i for i, s in enumerate(prediction.sites) if s.kind == "u"]
    assert np.all(prediction.tolerance["forward"][at] == 0.0)


def test_spread_is_that_of_networks():
    """ReLU at one hidden layer: Var(q)/q^2 is 5/n, plus what examples differ by."""
    model, x, prediction, _ = measured("relu")
    del model, prediction
    z = np.asarray(x, np.float64)
    squares = (z**2).mean(axis=1)
    between = float(np.var(squares) / squares.mean() ** 2)
    assert fluctuation.of_batch(squares, ()) == pytest.approx(between, rel=1e-6)
    field = Field(np.zeros(()), np.ones(1), (), symmetric=True)
    behind = pointwise.Pointwise(field).apply(lambda u: np.maximum(u, 0.0))
    assert fluctuation.excess(field) == pytest.approx(2.0, rel=1e-6)
    assert fluctuation.excess(behind) == pytest.approx(5.0, rel=1e-4)


@pytest.mark.parametrize("rho", [-0.5, 0.2, 0.7])
def test_correlation_of_squares(rho):
    """By a rule over the plane, behind ReLU, a square, and for normal positions."""
    g, w = np.polynomial.hermite_e.hermegauss(160)
    first, other = np.meshgrid(g, g, indexing="ij")
    other = rho * first + np.sqrt(1 - rho**2) * other
    w = np.multiply.outer(w, w) / w.sum() ** 2

    def exactly(phi):
        x, y = phi(first) ** 2, phi(other) ** 2
        return np.sum(w * (x - np.sum(w * x)) * (y - np.sum(w * y))) / np.sum(
            w * (x - np.sum(w * x)) ** 2
        )

    table = np.array([[[0.0, rho], [1.0, 1.0], [rho, 0.0]]])
    field = Field(np.zeros(2), table, ((-1, 0, 1),), symmetric=True)
    assert fluctuation.correlation_of_squares(field)[2] == pytest.approx(rho**2)
    for phi, error in ((lambda u: np.maximum(u, 0.0), 0.01), (np.square, 0.08)):
        behind = pointwise.Pointwise(field).apply(phi)
        got = fluctuation.correlation_of_squares(behind)
        assert got[1] == pytest.approx(1.0)
        assert got[2] == pytest.approx(exactly(phi), abs=error)
    assert exactly(np.square) == pytest.approx((72 * rho**2 + 24 * rho**4) / 96)


def test_log_normal_has_its_moments():
    factors, chances = log_normal(0.7)
    assert chances @ factors == pytest.approx(1.0, rel=1e-6)
    assert chances @ factors**2 == pytest.approx(1.7, rel=1e-3)


def test_a_unit_is_large_where_its_own_branch_is(key):
    """x + W sin x at 6 channels: E[sin^2] of the sum, by drawing x and W."""
    n, draws = 6, 400_000
    keys = jax.random.split(key)
    x, z = (np.asarray(jax.random.normal(k, (draws, n)), np.float64) for k in keys)
    q = np.mean(np.sin(x) ** 2, axis=1, keepdims=True)
    h = x + np.sqrt(q) * z
    drawn = np.mean(np.sin(h) ** 2, axis=1)

    def model(params, x):
        x = x @ params["first"]
        return jnp.sin(x + jnp.sin(x) @ params["branch"]) @ params["last"]

    shapes = {name: Random((n, n), 1.0 / n) for name in ("first", "branch", "last")}
    got = predict(model, example(shapes), jnp.ones((1, n)), draws=0)
    last = max(i for i, s in enumerate(got.sites) if s.kind == "u")
    off = got.second["forward"][last] - drawn.mean()
    sem = drawn.std() / np.sqrt(draws)
    stated = got.tolerance["forward"][last] * drawn.mean()
    assert abs(off) < 5 * sem + stated
    assert stated < 0.02
    # As normal as if the branch read other units, it would be further off than that.
    e, w = np.polynomial.hermite_e.hermegauss(60)
    apart = w @ np.sin(np.sqrt(1 + q.mean()) * e) ** 2 / w.sum()
    assert apart - drawn.mean() > 5 * sem + 1.5 * stated


def test_a_narrow_layer_that_is_zero_stays_so():
    """ReLU at 3 channels: u is zero where all of the layers before it were, once."""
    n, depth = 3, 5
    shapes = {f"w{i}": Random((n, n), 2.0 / n) for i in range(depth)}
    shapes["x"] = Random((n, n), 1.0 / n)
    shapes["w0"] = Random((8, n), 2.0 / 8)

    def model(params, x):
        for i in range(depth):
            x = jax.nn.relu(x @ params[f"w{i}"])
        return x @ params["x"]

    got = predict(model, example(shapes), jnp.ones((1, 8)), draws=0)
    at = [i for i, s in enumerate(got.sites) if s.kind == "u"][:-1]
    alive = (1.0 - 0.5**n) ** np.arange(depth)
    assert got.second["backward"][at] == pytest.approx(0.5 * alive, rel=1e-6)
    assert all(got.grade["backward"][i] is Grade.APPROXIMATE for i in at[1:])


def test_taps_on_padding_average_nothing():
    """Two positions, taps two apart: each output reads one, whatever the kernel."""
    field = Field(np.zeros(2), np.array([[[0.0, 0.5], [1.0, 1.0], [0.5, 0.0]]]), LAGS)
    state = State(("b", "s", "c"), ((8, field.replace(symmetric=True)),))
    axis = Axis(2, 3, pad=(2, 2), kernel_dilation=2)
    spread = fluctuation.contracted(state, [axis], LAGS)
    assert spread[1] == pytest.approx(2 / 8)
    assert spread[2] == pytest.approx(2 / 8 * 0.5**2)
    inside = fluctuation.contracted(state, [Axis(2, 2)], ((0,),))
    assert inside[0] == pytest.approx(2 / 8 * (1 + 0.5**2) / 2)


LAGS = ((-1, 0, 1),)


def test_responses_average_and_scale():
    a, b = (Response(power=p, alignment=2.0, unit=4.0 - p) for p in (1.0, 3.0))
    mean = Response.average([a, b], [0.5, 0.5])
    assert (mean.power, mean.alignment, mean.unit) == (2.0, 2.0, 2.0)
    assert a.scaled(0.0).is_zero


def test_window_averages_a_spread():
    """The mean of two positions with independent fluctuations has half of their own."""
    lags = (-1, 0, 1)
    got = fluctuation.mapped(np.array([0.0, 1.0, 0.0]), lags, 0, np.ones((1, 2)), (0,))
    assert got == pytest.approx([0.5])
    alike = fluctuation.mapped(np.ones(3), lags, 0, np.ones((1, 2)), (0,))
    assert alike == pytest.approx([1.0])


@pytest.mark.slow
def test_alike_cotangents_see_that_positions_share_their_weights(key):
    # Behind a global mean, masks of two positions and the weights between them matter
    # together: a factor of 1.8 at 8 channels, however white the input.
    class Narrow(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(6):
                x = nn.relu(nn.Conv(8, (3, 3), use_bias=False)(x))
            return nn.Dense(8)(x.mean((1, 2)))

    x = jax.random.normal(key, (2, 4, 4, 3))
    found = lw.predict(Narrow(), None, x, method="sitewise")
    got = lw.measure(Narrow(), None, x, draws=2000).curve("backward")
    off = np.log(got.mean(axis=0) / found.curve("backward"))
    sem = got.std(axis=0, ddof=1) / np.sqrt(len(got)) / got.mean(axis=0)
    assert np.all(off[1:4] > 5 * sem[1:4])
    assert np.all(np.abs(off) <= 5 * sem + found.curve_tolerance("backward"))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.05, 0.5, 0.99])
def test_zeros_among_examples_stay_zeros(share):
    squares = 1.0 + np.arange(1000.0).reshape(1000, 1) % 7
    squares[: int(1000 * share)] = 0.0
    law = fluctuation.powers_of(squares)
    assert law is not None
    assert law.mean() == pytest.approx(1.0)
    assert np.mean(law == 0.0) == pytest.approx(share, abs=0.06)
    assert np.any(law == 0.0) == (share > 0)


@pytest.mark.slow
def test_a_depthwise_convolution_adds_what_weights_and_masks_have_in_common():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(32, (1, 1))(x))
            x = nn.relu(nn.Conv(32, (3, 3), feature_group_count=32)(x))
            x = nn.relu(nn.Conv(32, (3, 3), feature_group_count=32)(x))
            return nn.Dense(4)(x.mean((1, 2)))

    x = jax.random.normal(jax.random.key(0), (4, 6, 6, 3))
    prediction = lw.predict(Model(), None, x, draws=0)
    measured = lw.measure(Model(), None, x, draws=512, key=jax.random.key(1))
    at = prediction.find("u", 1)
    samples = measured.second_moment("backward")[:, at]
    predicted = prediction.second["backward"][at]
    # A ratio of means stands for the mean of one: a few percent for each depthwise one.
    assert_mean_close(samples, predicted, bias=0.08 * predicted)
