from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import layerwise as lw
from helpers import F34_REFERENCE, traced
from layerwise.errors import UnsupportedModelError
from layerwise.initializers import asv, variance_scaling
from layerwise.theory.recursion import iterate
from layerwise.tracing import chain


@pytest.fixture(scope="module")
def f34():
    return traced(lw.zoo.f34(), jnp.ones((2, 224, 224, 3)))


@pytest.mark.parametrize("scheme", F34_REFERENCE["schemes"])
def test_f34_is_the_reference_at_every_layer(f34, scheme):
    want = F34_REFERENCE["schemes"][scheme]
    got = iterate(chain(f34), want["sigma2"])
    np.testing.assert_allclose(got.q, want["q_paper"], rtol=1e-10)
    np.testing.assert_allclose(got.r, want["r_paper"], rtol=1e-10)


SCHEMES = {
    "xavier": ("glorot", None),
    "kaiming_fan_in": ("kaiming_fan_in", None),
    "kaiming_fan_out": ("kaiming_fan_out", None),
    "asv_forward": ("asv_forward", None),
    "asv_backward": ("asv_backward", None),
    "asv_forward_cap3": ("asv_forward", 3.0),
    "asv_backward_cap3": ("asv_backward", 3.0),
}


def test_every_reference_scheme_is_one_of_ours():
    assert set(SCHEMES) == set(F34_REFERENCE["schemes"])


@pytest.mark.parametrize("reference", SCHEMES)
def test_f34_scheme_variances_are_the_reference(f34, reference):
    scheme, cap = SCHEMES[reference]
    if scheme in asv.RULES:
        got = asv.variances(f34, scheme, cap=cap)
    else:
        got = variance_scaling.variances(f34, scheme)
    want = F34_REFERENCE["schemes"][reference]["sigma2"]
    np.testing.assert_allclose(list(got.values()), want, rtol=1e-10)


def test_f50_is_the_reference():
    """Counts and Kaiming's q_49, q_50 by an independent implementation."""
    model = traced(lw.zoo.f50(), jnp.ones((2, 224, 224, 3)))
    layers = chain(model)
    assert len(layers) == 50
    kaiming = list(variance_scaling.variances(model, "kaiming_fan_in").values())
    q = iterate(layers, kaiming).q
    assert q[48:] == pytest.approx([2.822237589996452, 0.9376092171562244], rel=1e-10)


class Stack(nn.Module):
    phi: Callable = staticmethod(nn.relu)
    depth: int = 3

    @nn.compact
    def __call__(self, x):
        for i in range(self.depth):
            x = self.phi(nn.Conv(8 + i, (3, 3), padding="VALID")(x))
        return nn.Dense(5)(x.reshape(x.shape[0], -1))


def test_without_padding_and_pooling_asv_is_kaiming_exactly():
    model = traced(Stack(), jnp.ones((2, 12, 12, 8)))
    forward = asv.variances(model, "asv_forward")
    kaiming = variance_scaling.variances(model, "kaiming_fan_in")
    first = model.layers[0].path  # tau_0 = 1: its input is data, not a ReLU's output
    for path, value in forward.items():
        assert value == pytest.approx(kaiming[path] / (2 if path == first else 1))

    class Dense(nn.Module):
        @nn.compact
        def __call__(self, x):
            for width in (7, 5, 3):
                x = nn.relu(nn.Dense(width)(x))
            return x

    model = traced(Dense(), jnp.ones((2, 4)))
    assert asv.variances(model, "asv_backward") == pytest.approx(
        variance_scaling.variances(model, "kaiming_fan_out")
    )


def test_bias_variance_is_added_once_a_layer():
    layers = chain(traced(Stack(depth=1), jnp.ones((2, 3, 3, 8))))
    q = iterate(layers, [0.0, 0.0], bias_variance=[0.3, 0.2]).q
    assert q == pytest.approx([0.3, 0.2])


def test_activation_and_pooling_are_read_off_the_program():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.max_pool(jnp.tanh(nn.Conv(4, (3, 3))(x)), (2, 3), (2, 3))
            x = nn.relu(nn.max_pool(nn.Conv(4, (3, 3))(x), (2, 2)))
            x = nn.avg_pool(nn.gelu(nn.Conv(4, (3, 3))(x)), (3, 1))
            x = jax.nn.leaky_relu(nn.Conv(4, (1, 1))(x), 0.3).mean((1, 2))
            return nn.Dense(3)(x)

    layers = chain(traced(Net(), jnp.ones((2, 14, 15, 3))))
    assert [y.max_size for y in layers] == [6, 4, 1, 1, 1]
    assert [y.average_size for y in layers] == [1, 1, 3, 4 * 4, 1]
    assert [y.scale for y in layers] == pytest.approx([1.0] * 5)
    z = jnp.linspace(-3, 3, 50)
    activations = (jnp.tanh, jax.nn.relu, jax.nn.gelu)
    for layer, phi in zip(layers, activations, strict=False):
        assert layer.phi is not None
        np.testing.assert_allclose(layer.phi(z), phi(z), atol=1e-6)
    leaky = layers[3].phi
    assert leaky is not None
    assert float(leaky(jnp.float32(-1.0))) == pytest.approx(-0.3)
    assert layers[4].phi is None


@pytest.mark.parametrize(
    ("name", "block", "match"),
    [
        ("residual", lambda x: x + nn.relu(nn.Dense(4)(x)), "does not read the layer"),
        (
            "gate",
            lambda x: nn.Dense(4)(x) * nn.sigmoid(nn.Dense(4)(x)),
            "does not read",
        ),
        ("norm", lambda x: nn.LayerNorm()(nn.Dense(4)(x)), "is followed by"),
        ("pad", lambda x: jnp.pad(nn.Dense(4)(x), ((0, 0), (0, 2))), "pad"),
    ],
)
def test_says_where_a_model_is_no_chain(name, block, match):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(block(nn.Dense(4)(x)))

    with pytest.raises(UnsupportedModelError, match=match) as caught:
        chain(traced(Net(), jnp.ones((2, 4))))
    assert "test_recursion.py" in str(caught.value)  # the user's own line
    assert "layerwise.measure" in str(caught.value)


def test_a_straight_through_estimator_is_not_taken_for_its_body():
    @jax.custom_jvp
    def hard(x):
        return jnp.sign(x)

    hard.defjvp(lambda p, t: (jnp.sign(p[0]), t[0]))

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(hard(nn.Dense(4)(x)))

    with pytest.raises(UnsupportedModelError, match="custom_jvp_call"):
        chain(traced(Net(), jnp.ones((2, 4))))
