"""What is stated for moments of pairs of positions, and how it adds up in depth."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from layerwise.theory import lags as lagging, pointwise
from layerwise.theory.predict import predict
from layerwise.theory.rules.elementwise import PAIRS, pair_error
from layerwise.theory.state import Field, State
from tests.theory.ensemble import measure, misses


SIZE = 6
LAGS = (tuple(range(1 - SIZE, SIZE)),)


def field(correlation, spread=0.0):
    """Unit normal entries whose correlation falls off with the lag."""
    rho = correlation ** np.abs(np.array(LAGS[0], float))
    table = rho[:, None] * lagging.inside(LAGS, (SIZE,))
    return Field(np.zeros(SIZE), table[None], LAGS, spread=spread)


def behind(correlation, by, phi):
    """The pairs behind `phi` where those in front are off by a factor."""
    f = field(correlation)
    table = f.table * np.where(np.array(LAGS[0]) == 0, 1.0, by)[:, None]
    out = pointwise.Pointwise(f.replace(table=table)).apply(phi)
    return out.table[0] * np.exp(out.log_scale)


@pytest.mark.parametrize("correlation", [0.2, 0.6, 0.95])
@pytest.mark.parametrize("down", [0.0, 0.3, -1.0])
def test_an_activation_keeps_no_more_of_an_error_than_it_says(correlation, down):
    phi = lambda x: np.where(x > 0, x, down * x)
    error, live = 1e-5, lagging.inside(LAGS, (SIZE,)) > 0
    kept = pointwise.Pointwise(field(correlation)).carried((1.0, down))
    changed = np.log(
        behind(correlation, 1 + error, phi)[live] / behind(correlation, 1.0, phi)[live]
    )
    assert 0.0 < kept < 1.0
    assert np.abs(changed).max() == pytest.approx(kept * error, rel=1e-3)


def test_all_of_an_error_is_kept_where_nothing_is_known():
    run = pointwise.Pointwise(field(0.5))
    assert run.carried(None) == 1.0
    assert pointwise.Pointwise(field(0.5).single()).carried((1.0, 0.0)) == 1.0


def test_positions_that_fluctuate_together_leave_their_correlation_alone():
    together = np.full(len(LAGS[0]), 3.0)
    apart = np.where(np.array(LAGS[0]) == 0, 3.0, 1.0)
    for spread, left in ((together, 0.0), (apart, np.log(4.0 / 2.0))):
        state = State(("s", "c"), ((1, field(0.5, spread)),))
        assert pair_error(state) == pytest.approx(PAIRS * left)
    alone = State(("s", "c"), ((1, field(0.5, together).single()),))
    assert pair_error(alone) == pytest.approx(PAIRS * np.log(4.0))


class Deep(nn.Module):
    """Padded convolutions with ReLU, and the mean over the map."""

    depth: int

    @nn.compact
    def __call__(self, x):
        he = nn.initializers.he_normal()
        for _ in range(self.depth):
            x = nn.relu(nn.Conv(32, (3, 3), kernel_init=he)(x))
        return nn.Dense(4)(x.mean((1, 2)))


@pytest.mark.slow
def test_what_is_stated_for_a_mean_over_a_deep_map_holds_and_says_something():
    """The spread of one position grows without bound with the depth; this does not."""
    x = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
    predicted = predict(Deep(12), None, x)
    assert 0.0 < predicted.tolerance["forward"][-1] < 0.3
    draw = lambda key: Deep(12).init(key, x)
    assert not misses(predicted, measure(predicted, draw, x, draws=512))
