import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st

from helpers import F34_REFERENCE, assert_mean_close
from layerwise.errors import InvalidArgumentError, UnsupportedModelError
from layerwise.moments.pooling import pool_constants, relu_average, relu_max


TABLE_1 = [
    (kind, int(size), want["tau"], want["gamma"])
    for name, want in F34_REFERENCE["pool_constants"].items()
    for kind, size in [name.split("_T")]
]
SIZE = {"max": "max_size", "avg": "average_size"}


@pytest.mark.parametrize(("kind", "size", "tau", "gamma"), TABLE_1)
def test_table_1(kind, size, tau, gamma):
    got = (relu_max if kind == "max" else relu_average)(size)
    assert got.tau == pytest.approx(tau, rel=1e-10)
    assert got.gamma == pytest.approx(gamma, rel=1e-10)


@pytest.mark.parametrize(("kind", "size", "tau", "gamma"), TABLE_1)
def test_quadrature_of_any_activation_is_table_1_for_relu(kind, size, tau, gamma):
    got = pool_constants(jax.nn.relu, **{SIZE[kind]: size}, q=3.7)
    assert got.tau == pytest.approx(tau, rel=1e-10)
    assert got.gamma == pytest.approx(gamma, rel=1e-10)


def test_closed_forms():
    assert relu_max(2).tau == pytest.approx(0.75 + 1 / (2 * np.pi), rel=1e-12)
    assert pool_constants(None, max_size=2).tau == pytest.approx(1.0, rel=1e-12)
    assert pool_constants(None, max_size=5).gamma == pytest.approx(0.2, rel=1e-12)
    assert pool_constants(None, average_size=4).tau == pytest.approx(0.25, rel=1e-12)
    one = pool_constants(None, q=2.0)
    assert (one.tau, one.gamma) == pytest.approx((1.0, 1.0), rel=1e-13)


@given(a=st.floats(-0.9, 1.5), q=st.floats(1e-3, 1e3))
def test_leaky_relu_is_homogeneous(a, q):
    got = pool_constants(lambda x: jnp.where(x > 0, x, a * x), q=q)
    assert got.tau == pytest.approx((1 + a * a) / 2, rel=1e-10)
    assert got.gamma == pytest.approx((1 + a * a) / 2, rel=1e-10)


def test_monotone_in_the_window():
    sizes = [1, 2, 3, 4, 9, 16, 49]
    maximum = [relu_max(t) for t in sizes]
    average = [relu_average(t) for t in sizes]
    for curve, sign in (
        ([c.tau for c in maximum], 1),
        ([c.gamma for c in maximum], -1),
        ([c.tau for c in average], -1),
        ([c.gamma for c in average], -1),
    ):
        assert np.all(sign * np.diff(curve) > 0)


@pytest.mark.parametrize(
    "phi", [jax.nn.relu, jnp.tanh, jax.nn.softplus], ids=["relu", "tanh", "softplus"]
)
@pytest.mark.parametrize("kind", ["max", "avg"])
def test_matches_samples(phi, kind, key):
    """Independent windows of 4, forward value and squared derivative."""
    q, size = 1.7, 4
    u = jnp.sqrt(q) * jax.random.normal(key, (400, 500, size))

    def pooled(u):
        reduce = jnp.max if kind == "max" else jnp.mean
        return reduce(phi(u), axis=-1)

    z, pull = jax.vjp(pooled, u)
    du = pull(jnp.ones_like(z))[0]
    want = pool_constants(phi, **{SIZE[kind]: size}, q=q)
    assert_mean_close(jnp.mean(z**2, axis=1), want.second)
    assert_mean_close(jnp.mean(du**2, axis=(1, 2)), want.gamma)


def test_zero_signal_is_defined():
    got = pool_constants(jax.nn.sigmoid, q=0.0)
    assert got.second == pytest.approx(0.25)
    assert pool_constants(jax.nn.relu, q=0.0).second == 0.0


def test_refuses_what_it_cannot_integrate():
    with pytest.raises(UnsupportedModelError, match="decreases somewhere"):
        pool_constants(jax.nn.gelu, max_size=4)
    with pytest.raises(InvalidArgumentError, match="window of 0"):
        relu_max(0)
    with pytest.raises(InvalidArgumentError, match="not a second moment"):
        pool_constants(jax.nn.relu, q=-1.0)
    with pytest.raises(InvalidArgumentError, match="exceed 1"):
        pool_constants(jax.nn.relu, max_size=2, average_size=2)
