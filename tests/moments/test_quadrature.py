import math

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy.special import ndtr

from layerwise.moments.quadrature import expectation


@pytest.mark.parametrize("power", [0, 2, 4, 10])
def test_even_powers_are_double_factorials(power):
    exact = math.prod(range(power - 1, 0, -2))
    got = expectation(lambda z: z**power)
    assert got.value == pytest.approx(exact, rel=1e-13)
    assert abs(got.value - exact) <= got.error + 1e-13 * exact


@given(at=st.floats(-6, 6))
def test_a_kink_anywhere_is_found(at):
    """E[max(z - a, 0)] = density(a) - a (1 - Phi(a))."""
    exact = math.exp(-(at**2) / 2) / math.sqrt(2 * math.pi) - at * ndtr(-at)
    got = expectation(lambda z: np.maximum(z - at, 0.0))
    assert got.value == pytest.approx(exact, rel=1e-10, abs=1e-15)


@given(at=st.floats(-6, 6))
def test_a_jump_anywhere_is_found(at):
    got = expectation(lambda z: (z > at).astype(float))
    assert got.value == pytest.approx(ndtr(-at), rel=1e-9)
    assert abs(got.value - ndtr(-at)) <= got.error + 1e-15


@pytest.mark.slow
@given(scale=st.floats(1e-3, 1e3))
def test_steep_functions(scale):
    """E[tanh(s z)^2] for large s nears 1 - sqrt(2/pi)/s, for small s is s^2."""
    got = expectation(lambda z: np.tanh(scale * z) ** 2).value
    z = np.linspace(-12, 12, 4_000_001)
    brute = np.trapezoid(
        np.tanh(scale * z) ** 2 * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi), z
    )
    assert got == pytest.approx(brute, rel=1e-8)


def test_infinity_is_not_hidden():
    assert not np.isfinite(expectation(lambda z: np.full_like(z, np.inf)).value)


def test_a_pole_is_closed_in_on_or_found_infinite():
    """E[|z - 1|^-a]: finite for a < 1 wherever the pole is, and infinite from there."""
    for power in (1.0, 1.5, 2.0, 4.0):
        assert expectation(lambda z, p=power: np.abs(z) ** -p).value == math.inf
        for at in (1.2, -0.3217, 4.04):
            got = expectation(lambda z, p=power, a=at: np.abs(z - a) ** -p)
            assert got.value == math.inf
    exact = 2**-0.25 * math.gamma(0.25) / math.sqrt(math.pi)
    got = expectation(lambda z: np.abs(z) ** -0.5)
    assert abs(got.value - exact) <= got.error < 1e-4


def test_noise_in_the_integrand_ends_the_refinement():
    """Panels that no halving can settle are given up, and their gaps are the error."""
    got = expectation(lambda z: 1.0 + 1e-9 * np.sin(1e12 * z))
    assert got.value == pytest.approx(1.0, abs=1e-8)
    assert abs(got.value - 1.0) <= got.error
