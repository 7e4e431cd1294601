import jax
import numpy as np
import pytest
from expressivity.nets import Draws

from layerwise.errors import InputError, InvalidArgumentError
from layerwise.expressivity.memorization import memorize, memorize_deep


# Widths and weight counts for n = 400, d = 20: ceil((n-1)/L) + 2 and 3(n-1)+d+2L+1.
PRINTED = {
    1: (401, 1220),
    2: (202, 1222),
    5: (82, 1228),
    10: (42, 1238),
    20: (22, 1258),
}


@pytest.mark.parametrize("n_hidden", PRINTED)
def test_400_examples_of_20_numbers(n_hidden, key):
    draw = Draws(n_hidden)
    x, y = draw.normal(400, 20), draw.normal(400)
    net = memorize_deep(x, y, key, n_hidden=n_hidden)
    assert (net.width, net.n_weights) == PRINTED[n_hidden]
    assert net.net.n_layers == net.n_hidden == n_hidden
    assert abs(net(x) - y).max() < 1e-8


def test_zhang_fits_with_2n_plus_d_weights(key):
    draw = Draws(0)
    x, y = draw.normal(400, 20), draw.normal(400)
    net = memorize(x, y, key)
    assert (net.width, net.n_weights, net.net.n_layers) == (400, 820, 1)
    assert abs(net(x) - y).max() < 1e-8


@pytest.mark.parametrize("n_hidden", [None, 1, 7])
def test_1000_random_labels_of_784_pixels(n_hidden, key):
    x = Draws(1).normal(1000, 784)
    y = np.asarray(jax.random.randint(key, (1000,), 0, 10), np.float64)
    if n_hidden is None:
        net = memorize(x, y, key)
    else:
        net = memorize_deep(x, y, key, n_hidden=n_hidden)
    np.testing.assert_array_equal(np.round(net(x)), y)
    # Slopes of 1e6 between close neighbours times 1e-16, over a thousand terms.
    assert abs(net(x) - y).max() < 1e-6


@pytest.mark.parametrize(("n", "n_hidden"), [(1, 1), (2, 1), (5, 4), (7, 4), (11, 10)])
def test_small_and_uneven_sizes(n, n_hidden, key):
    draw = Draws(n)
    x, y = draw.normal(n, 3), draw.normal(n)
    net = memorize_deep(x, y, key, n_hidden=n_hidden)
    assert net.width == -(-(n - 1) // n_hidden) + 2
    assert abs(net(x) - y).max() < 1e-10
    assert abs(memorize(x, y, key)(x) - y).max() < 1e-10


def test_equal_examples_with_equal_labels_are_one(key):
    x, y = Draws(0).normal(10, 3), Draws(1).normal(10)
    twice = memorize(np.concatenate([x, x]), np.concatenate([y, y]), key)
    assert twice.width == 10
    assert abs(twice(x) - y).max() < 1e-10


def test_wrong_input_is_refused(key):
    x = np.ones((2, 3))
    with pytest.raises(InputError, match=r"have another\s+label"):
        memorize(x, np.array([0.0, 1.0]), key)
    with pytest.raises(InputError, match="One label per example"):
        memorize(Draws(0).normal(4, 3), np.zeros(3), key)
    with pytest.raises(InvalidArgumentError, match="Use 1 to 3 hidden"):
        memorize_deep(Draws(0).normal(4, 3), np.arange(4.0), key, n_hidden=4)
