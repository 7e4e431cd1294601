"""The closed laws against published numbers, simulations and each other.

Reference values: computed once by independent quadrature and by simulation at width 512
(40 seeds or fewer); simulation tolerances are what those runs scatter by.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import assert_mean_close
from layerwise.errors import InvalidArgumentError
from layerwise.theory import finite_width, mean_field, residual, shaping


MOMENTS = {  # (E f, E f^2) under N(0, 1)
    "relu": (jax.nn.relu, 0.39894228, 0.5),
    "tanh": (jnp.tanh, 0.0, 0.39429449),
    "gelu": (lambda x: jax.nn.gelu(x, approximate=False), 0.28209479, 0.42522148),
    "silu": (jax.nn.silu, 0.20662096, 0.35577552),
    "sigmoid": (jax.nn.sigmoid, 0.5, 0.29337904),
    "softplus": (jax.nn.softplus, 0.80605918, 0.92124591),
    "elu": (jax.nn.elu, 0.16052057, 0.64494542),
    "selu": (jax.nn.selu, 0.0, 1.0),
    "leaky": (lambda x: jax.nn.leaky_relu(x, 0.01), 0.39495286, 0.50005),
    "erf": (jax.lax.erf, 0.0, 0.46455905),
}


@pytest.mark.parametrize("name", MOMENTS)
def test_activation_moments(name):
    phi, mean, second = MOMENTS[name]
    got = mean_field.activation_moments(phi)
    # selu's constants are rounded in JAX to about 1e-7
    np.testing.assert_allclose(got[:2], (mean, second), rtol=2e-6, atol=2e-7)


EDGE = {  # sigma_b^2 -> (sigma_w^2, q*), tanh
    0.0001: (1.086026, 0.045709),
    0.001: (1.18919, 0.107292),
    0.01: (1.424205, 0.273301),
    0.05: (1.760955, 0.570048),
    0.1: (1.986073, 0.805799),
    0.3: (2.505127, 1.461169),
}


@pytest.mark.parametrize("sigma_b2", EDGE)
def test_edge_of_chaos_of_tanh(sigma_b2):
    sigma_w, q = mean_field.edge_of_chaos(jnp.tanh, sigma_b=sigma_b2**0.5)
    np.testing.assert_allclose((sigma_w**2, q), EDGE[sigma_b2], atol=6e-7)
    there = mean_field.phase(jnp.tanh, sigma_w=sigma_w, sigma_b=sigma_b2**0.5)
    assert there.name == "critical"
    assert there.q_star == pytest.approx(q, rel=1e-6)


def test_edge_of_chaos_says_where_there_is_none():
    with pytest.raises(InvalidArgumentError, match="No critical sigma_w"):
        mean_field.edge_of_chaos(jax.nn.relu, sigma_b=0.5)


def test_phases_of_tanh():
    ordered = mean_field.phase(jnp.tanh, sigma_w=0.9, sigma_b=0.5)
    chaotic = mean_field.phase(jnp.tanh, sigma_w=2.5, sigma_b=0.3)
    assert (ordered.name, ordered.c_star) == ("ordered", 1.0)
    assert chaotic.name == "chaotic"
    assert 0 < chaotic.c_star < 1
    got = mean_field.c_map(
        jnp.tanh, chaotic.c_star, q=chaotic.q_star, sigma_w=2.5, sigma_b=0.3
    )
    assert got == pytest.approx(chaotic.c_star, abs=1e-9)


RELU_C = {1: 0.31831, 2: 0.493731, 5: 0.735946, 10: 0.871536, 33: 0.975928}


def test_relu_correlation_map():
    c = 0.0
    for layer in range(1, 34):
        c = mean_field.c_map(jax.nn.relu, c, q=1.0, sigma_w=2**0.5)
        if layer in RELU_C:
            assert c == pytest.approx(RELU_C[layer], abs=6e-7)


@pytest.mark.parametrize(
    ("depth", "slope"),
    [(20, 0.18138), (34, 0.336299), (50, 0.430523), (100, 0.57044), (1000, 0.84435)],
)
def test_tat_slope(depth, slope):
    assert shaping.tat_slope(depth) == pytest.approx(slope, abs=6e-6)


def test_tat_needs_depth():
    with pytest.raises(InvalidArgumentError, match="depth=12"):
        shaping.tat_slope(12)


def test_shaping_constants():
    assert shaping.dks_local_slope(34) == pytest.approx(1.011997, abs=1e-6)
    assert shaping.dks_local_slope(100) == pytest.approx(1.004063, abs=1e-6)
    assert shaping.normalizer_free_gain(jax.nn.relu) == pytest.approx(1.7128585504)


def test_plain_law_is_half_of_the_slides():
    for b, simulated in ((1.0, 1.86e-30), (2.0, 1.178), (3.0, 3.19e17)):
        got = residual.plain_growth(b, 100, jax.nn.relu)
        assert got == pytest.approx((b / 2) ** 100)
        assert (
            abs(np.log(got / simulated)) < 1.0
        )  # one seed, width 512: sd sqrt(500/512)


@pytest.mark.parametrize(
    ("c", "r_first", "q_last"),
    [(1, 1.638, 1.647), (2, 2.678, 2.705), (10, 125.2, 131.5)],
)
def test_residual_law_with_the_weight_last(c, r_first, q_last):
    q, r = residual.weight_then_add(c / 100, 100, jax.nn.relu)
    assert r[1] == pytest.approx(r_first, rel=5e-4)
    assert q[-1] == pytest.approx(q_last, rel=1e-3)


def test_residual_law_of_tanh_against_simulation():
    for c, r_first, q_last in ((1, 1.5399, 1.4285), (2, 2.2415, 1.9154)):
        q, r = residual.weight_then_add(c / 100, 100, jnp.tanh)
        assert r[1] == pytest.approx(r_first, rel=0.03)  # simulated at width 512
        assert q[-1] == pytest.approx(q_last, rel=0.03)


def test_mean_drift_with_the_activation_last():
    for c, q_last in ((1, 798.2), (2, 22743.8)):
        q, _ = residual.activate_then_add(c / 100, 100, jax.nn.relu)
        assert q[-1] == pytest.approx(q_last, rel=0.1)  # simulated at width 512


def test_two_weight_blocks():
    assert residual.two_weight_factor(2.0, 0.25, jax.nn.relu) == pytest.approx(1.25)
    v = residual.depth_safe_variance(1.0, 64, 100, weights=2)
    growth = residual.two_weight_factor(64 * v, 64 * v, jax.nn.relu) ** 100
    assert growth == pytest.approx(np.exp(0.5), rel=2e-3)


def test_batch_norm_law():
    relu = residual.batch_norm(100, jax.nn.relu, s=2.0, q_0=1.0)
    # Simulated at width 512: 210.5, 24.14, 2.706; the slides' L/l says 100, 10, 2.
    for layer, expected in ((1, 206.979), (10, 23.87), (50, 2.698)):
        assert relu.ratio[layer] == pytest.approx(expected, rel=3e-4)
    identity = residual.batch_norm(40, lambda x: x, s=1.0, q_0=1.0)
    for layer in (1, 5, 10, 20):
        assert identity.ratio[layer] == pytest.approx(41 / (layer + 1), rel=1e-12)
    assert relu.exponent == pytest.approx(np.pi / (np.pi - 1))
    assert residual.batch_norm(9, jnp.tanh).exponent == pytest.approx(1.1778072272)
    assert residual.plain_batch_norm_growth(jax.nn.relu) == pytest.approx(1.46694220692)


def test_finite_width_of_relu():
    assert finite_width.excess(jax.nn.relu) == pytest.approx(5.0)
    assert finite_width.log_variance([50] * 10, jax.nn.relu) == pytest.approx(
        10 * np.log1p(0.1)
    )
    assert finite_width.second_moment_of_length([10, 10]) == pytest.approx(2.25)


@pytest.mark.slow
def test_second_moment_of_length_matches_samples(key):
    """A ReLU network 8-8-8: E[M^2]/E[M]^2 of the mean square behind its last layer."""

    def length(key):
        x = jnp.full(8, 1.0)
        for k in jax.random.split(key, 2):
            w = jax.random.normal(k, (8, 8)) * (2 / 8) ** 0.5
            x = jax.nn.relu(w @ x)
        return jnp.mean(x**2)

    m = np.asarray(jax.vmap(length)(jax.random.split(key, 200_000)), np.float64)
    assert_mean_close(m, 1.0)
    assert_mean_close(m**2, finite_width.second_moment_of_length([8, 8]))
