import jax
import numpy as np
import pytest

from layerwise.errors import InvalidArgumentError
from layerwise.moments import dual


CASES = [(1.0, 1.0, 0.3), (1.5, 0.7, -0.4), (2.0, 2.0, 1.5)]
# Independent two-dimensional quadrature, to 1e-10.
REFERENCE = {
    "erf": (0.1281884337, -0.1662579715, 0.4096655294),
    "gelu": (0.1626772198, -0.005085143, 0.69909099),
    "relu": (0.24137214, 0.07567637, 0.78800211),
}
CLOSED = {
    "erf": (dual.erf_dual, jax.lax.erf),
    "gelu": (dual.gelu_dual, lambda x: jax.nn.gelu(x, approximate=False)),
    "relu": (dual.relu_dual, jax.nn.relu),
}


@pytest.mark.parametrize("name", CLOSED)
def test_closed_form_and_quadrature(name):
    closed, phi = CLOSED[name]
    for case, expected in zip(CASES, REFERENCE[name], strict=True):
        assert closed(*case) == pytest.approx(expected, rel=2e-7)
        assert dual.dual(phi, *case) == pytest.approx(expected, rel=2e-7)


def test_two_slopes():
    leaky = lambda x: jax.nn.leaky_relu(x, 0.2)
    for a, b, c in CASES:
        got = dual.two_slope_dual(1.0, 0.2, a, b, c)
        assert got == pytest.approx(dual.dual(leaky, a, b, c), rel=1e-8)
        slope = dual.two_slope_slope_dual(1.0, 0.2, c / np.sqrt(a * b))
        assert slope == pytest.approx(dual.dual(leaky, a, b, c, slopes=True), rel=1e-7)


def test_full_correlation_is_the_second_moment():
    assert dual.dual(jax.nn.relu, 2.0, 2.0, 2.0) == pytest.approx(1.0)


def test_refuses_what_is_no_covariance():
    with pytest.raises(InvalidArgumentError, match="no covariance"):
        dual.dual(jax.nn.relu, 1.0, 1.0, 1.5)
