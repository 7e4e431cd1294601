"""Schemes that need a shape only, and gains."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import layerwise as lw
from layerwise.errors import InvalidArgumentError, UnsupportedModelError


own = jax.nn.initializers
SAME_AS_JAX = {
    "lecun normal": (lw.initializers.lecun("truncated"), own.lecun_normal()),
    "lecun uniform": (lw.initializers.lecun("uniform"), own.lecun_uniform()),
    "glorot normal": (lw.initializers.glorot("truncated"), own.glorot_normal()),
    "glorot uniform": (lw.initializers.glorot("uniform"), own.glorot_uniform()),
    "he normal": (lw.initializers.kaiming_fan_in("truncated"), own.he_normal()),
    "he uniform": (lw.initializers.kaiming_fan_in("uniform"), own.he_uniform()),
    "fan out": (
        lw.initializers.kaiming_fan_out(),
        own.variance_scaling(2.0, "fan_out", "normal"),
    ),
    "fan avg": (
        lw.initializers.kaiming_fan_avg(),
        own.variance_scaling(2.0, "fan_avg", "normal"),
    ),
    "orthogonal": (lw.initializers.orthogonal(1.5), own.orthogonal(1.5)),
    "delta": (lw.initializers.delta_orthogonal(), own.delta_orthogonal()),
}


@pytest.mark.parametrize("name", SAME_AS_JAX)
def test_equals_jax_where_jax_has_it(name, key):
    ours, theirs = SAME_AS_JAX[name]
    kinds = [jnp.float32]
    if name not in ("orthogonal", "delta"):  # LAPACK has no bfloat16
        kinds.append(jnp.bfloat16)
    for dtype in kinds:
        a, b = (f(key, (3, 3, 8, 16), dtype) for f in (ours, theirs))
        assert a.dtype == dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "distribution", ["normal", "truncated", "uniform", "orthogonal"]
)
@pytest.mark.parametrize("scheme", ["lecun", "glorot", "kaiming_fan_out"])
def test_every_distribution_has_the_variance_of_the_formula(scheme, distribution, key):
    shape = (3, 3, 64, 32)
    fan_in, fan_out = 9 * 64, 9 * 32
    expected = {
        "lecun": 1 / fan_in,
        "glorot": 2 / (fan_in + fan_out),
        "kaiming_fan_out": 2 / fan_out,
    }[scheme]
    x = getattr(lw.initializers, scheme)(distribution)(key, shape, jnp.float32)
    # Normal squares vary most: relative standard error sqrt(2/n).
    assert float(jnp.mean(x**2)) == pytest.approx(expected, rel=6 * (2 / x.size) ** 0.5)
    if distribution == "orthogonal":  # the columns are orthogonal, and exactly so long
        matrix = np.asarray(x, np.float64).reshape(fan_in, -1)
        gram = matrix.T @ matrix / (expected * fan_in)
        np.testing.assert_allclose(gram, np.eye(32), atol=1e-5)


def test_identity_hands_the_signal_on(key):
    x = jax.random.normal(key, (2, 6, 6, 8))
    layer = nn.Conv(8, (3, 3), kernel_init=lw.initializers.identity(), use_bias=False)
    np.testing.assert_allclose(layer.init_with_output(key, x)[0], x, rtol=1e-6)


GAINS = {  # phi, what is preserved, gain^-2
    "relu": (jax.nn.relu, "second_moment", 0.5),
    "relu variance": (jax.nn.relu, "variance", 0.5 - 0.5 / math.pi),
    "relu gradient": (jax.nn.relu, "gradient", 0.5),
    "leaky": (lambda x: jax.nn.leaky_relu(x, 0.3), "second_moment", 0.545),
    "selu": (jax.nn.selu, "second_moment", 1.0),
    "gelu": (lambda x: jax.nn.gelu(x, approximate=False), "second_moment", 0.425221),
    "tanh": (jnp.tanh, "second_moment", 0.394294),
    "erf": (jax.lax.erf, "second_moment", 2 / math.pi * math.asin(2 / 3)),
    "erf gradient": (jax.lax.erf, "gradient", 4 / math.pi / math.sqrt(5)),
    "silu variance": (jax.nn.silu, "variance", 0.355776 - 0.20662**2),
    "identity": (lambda x: x, "gradient", 1.0),
}


@pytest.mark.parametrize("name", GAINS)
def test_gain_is_the_closed_form(name):
    phi, preserve, expected = GAINS[name]
    got = lw.gain(phi, preserve)
    rtol = 1e-5 if name in ("gelu", "tanh", "silu variance") else 1e-7  # 6 digits given
    assert got**-2 == pytest.approx(expected, rel=rtol)
    assert 0.0 <= got.error < 1e-9
    if "relu" in name or "leaky" in name:
        assert got.error == 0.0


def test_gain_says_what_is_wrong():
    with pytest.raises(InvalidArgumentError, match="Did you mean 'variance'"):
        lw.gain(jnp.tanh, "varience")
    with pytest.raises(InvalidArgumentError, match="not constant"):
        lw.gain(lambda x: 0.0 * x)
    with pytest.raises(InvalidArgumentError, match="q = -1"):
        lw.gain(jnp.tanh, q=-1.0)
    for phi in (lambda x: 1.0 / x, jnp.tan, lambda x: jnp.exp(x * x)):
        with pytest.raises(InvalidArgumentError, match="infinite"):
            lw.gain(phi)
    with pytest.raises(InvalidArgumentError, match="infinite"):
        lw.gain(lambda x: jnp.sqrt(jnp.abs(x)), "gradient")  # E[1/x]: of a logarithm


def test_gain_at_a_pole_is_within_its_error():
    """E|z|^a = 2^(a/2) Gamma((1 + a)/2) / sqrt(pi), for a > -1."""
    for power in (-0.2, -0.3, -0.4):
        got = lw.gain(lambda x, power=power: jnp.abs(x) ** power)
        a = 2 * power
        second = 2 ** (a / 2) * math.gamma((1 + a) / 2) / math.sqrt(math.pi)
        assert abs(got - second**-0.5) <= got.error
        assert got.error < 0.05 * got


class Operations(nn.Module):
    """Every way in which a kernel's shape does not tell its fans."""

    @nn.compact
    def __call__(self, x, tokens):
        x = nn.Conv(32, (3, 3), feature_group_count=4, name="grouped")(x)
        x = nn.Conv(32, (3, 3), kernel_dilation=2, name="dilated")(x)
        x = nn.ConvTranspose(16, (4, 4), strides=(2, 2), name="transposed")(x)
        x = nn.DenseGeneral((4, 6), axis=(-2, -1), name="general")(x)
        y = nn.Embed(50, 24, name="embedding")(tokens)
        return x.reshape(x.shape[0], -1).mean(-1) + y.mean((1, 2))


FANS = {
    "grouped": (9 * 4, 9 * 8),
    "dilated": (9 * 32, 9 * 32),
    "transposed": (16 * 32 / 4, 16 * 16),  # a quarter of the taps meets an input
    "general": (16 * 16, 24),
    "embedding": (1, 24),
}


@pytest.mark.parametrize(
    "distribution", ["normal", pytest.param("orthogonal", marks=pytest.mark.slow)]
)
def test_fans_are_those_of_the_operation(distribution, key):
    inputs = (jnp.ones((2, 8, 8, 16)), jnp.zeros((2, 5), int))
    scale = {
        "lecun": lambda i, o: 1 / i,
        "glorot": lambda i, o: 2 / (i + o),
        "kaiming_fan_out": lambda i, o: 2 / o,
    }
    for scheme, rule in scale.items():
        law = lw.scheme_law(Operations(), inputs, scheme, distribution=distribution)
        assert law.variances == {k: pytest.approx(rule(*v)) for k, v in FANS.items()}
        params = jax.jit(law)(key)["params"]
        for name, variance in law.variances.items():
            (kernel,) = (v for k, v in params[name].items() if k != "bias")
            bound = 6 * np.sqrt(2 / kernel.size)
            assert float(jnp.mean(kernel**2)) == pytest.approx(variance, rel=bound)


def test_whole_model_kernels_are_orthogonal_along_the_operation(key):
    inputs = (jnp.ones((2, 8, 8, 16)), jnp.zeros((2, 5), int))
    params = lw.initialize(Operations(), inputs, key, "orthogonal")["params"]
    general = np.asarray(params["general"]["kernel"], np.float64).reshape(16 * 16, 24)
    np.testing.assert_allclose(general.T @ general, np.eye(24), atol=1e-5)
    grouped = np.asarray(params["grouped"]["kernel"], np.float64).reshape(36, 4, 8)
    for group in np.moveaxis(grouped, 1, 0):
        np.testing.assert_allclose(group.T @ group, np.eye(8), atol=1e-5)


@pytest.mark.parametrize("scheme", ["orthogonal", "delta_orthogonal", "identity"])
def test_each_group_of_a_convolution_keeps_lengths(scheme, key):
    """Depthwise: one input for each output, and no length that depends on how many."""
    net = nn.Conv(40, (3, 3), feature_group_count=20, padding="VALID")
    x = jax.random.normal(key, (2, 3, 3, 20))
    kernel = lw.initialize(net, x, key, scheme)["params"]["kernel"]
    taps = np.asarray(kernel, np.float64).reshape(9, 20, 2)
    for group in np.moveaxis(taps, 1, 0):
        if scheme == "orthogonal":
            np.testing.assert_allclose(group.T @ group, np.eye(2), atol=1e-5)
        else:  # one tap of one input: its two weights have length 1, or are 1
            length = 1.0 if scheme == "delta_orthogonal" else 2.0
            assert np.sum(group[4] ** 2) == pytest.approx(length, rel=1e-5)
            assert np.sum(group**2) == pytest.approx(length, rel=1e-5)


def test_delta_orthogonal_on_a_model_and_where_it_cannot_be(key):
    net = nn.Sequential([nn.Conv(8, (3, 3)), jnp.tanh, nn.Conv(12, (3, 3))])
    x = jax.random.normal(key, (2, 6, 6, 4))
    params = lw.initialize(net, x, key, "delta_orthogonal", gain=2.0)["params"]
    kernel = np.asarray(params["layers_2"]["kernel"], np.float64)
    np.testing.assert_allclose(kernel[1, 1] @ kernel[1, 1].T, 4 * np.eye(8), atol=1e-4)
    kernel[1, 1] = 0
    assert not kernel.any()
    narrow = nn.Sequential([nn.Conv(8, (3, 3)), nn.Conv(4, (3, 3))])
    with pytest.raises(UnsupportedModelError, match="at least as many outputs"):
        lw.initialize(narrow, x, key, "delta_orthogonal")
    grouped = nn.Conv(2, (3, 3), feature_group_count=2)
    with pytest.raises(UnsupportedModelError, match="at least as many outputs"):
        lw.initialize(grouped, x, key, "delta_orthogonal")


def test_unsuited_options_say_so(key):
    x = jnp.ones((2, 4))
    with pytest.raises(
        InvalidArgumentError, match="orthogonal is drawn from orthogonal"
    ):
        lw.initialize(nn.Dense(3), x, key, "orthogonal", distribution="uniform")
    with pytest.raises(InvalidArgumentError, match="Did you mean 'uniform'"):
        lw.initialize(nn.Dense(3), x, key, "lecun", distribution="unifrom")
    with pytest.raises(InvalidArgumentError, match="gain belongs to orthogonal"):
        lw.initialize(nn.Dense(3), x, key, "lecun", gain=2.0)
