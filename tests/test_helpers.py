import jax
import numpy as np
import pytest

from helpers import assert_mean_close


def test_accepts_the_true_mean(key):
    assert_mean_close(3.0 + jax.random.normal(key, (1000,)), 3.0)


def test_rejects_a_mean_ten_standard_errors_away(key):
    samples = 3.0 + jax.random.normal(key, (1000,))
    with pytest.raises(AssertionError, match="standard errors apart"):
        assert_mean_close(samples, 3.0 + 10 / 1000**0.5)


def test_a_known_bias_is_allowed_for(key):
    samples = 3.0 + jax.random.normal(key, (1000,))
    assert_mean_close(samples, 3.5, bias=0.5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rejects_what_is_not_finite(bad):
    with pytest.raises(AssertionError), np.errstate(invalid="ignore"):
        assert_mean_close(np.array([1.0] * 9 + [bad]), 1.0)


def test_constant_samples_are_compared_up_to_rounding():
    assert_mean_close(np.full(10, 0.1, np.float32), 0.1)
    with pytest.raises(AssertionError):
        assert_mean_close(np.full(10, 0.1), 0.1001)


def test_refuses_entries_of_one_network():
    with pytest.raises(ValueError, match="one per draw"):
        assert_mean_close(np.zeros((10, 10)), 0.0)


def test_each_test_has_its_own_key(key, request):
    assert "test_each_test_has_its_own_key" in request.node.nodeid
    assert jax.random.key_data(key).tolist() != [0, 0]
