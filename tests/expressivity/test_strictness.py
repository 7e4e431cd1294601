from fractions import Fraction

import numpy as np
import pytest
from expressivity.nets import Draws
from hypothesis import given, strategies as st

from layerwise.errors import InvalidArgumentError
from layerwise.expressivity.regions import decompose_line
from layerwise.expressivity.strictness import (
    DISTANCE_ON_LINE,
    certify,
    long_skip_unit,
    target,
    target_in_concatenated,
)


def exact_slopes(net):
    pieces = decompose_line(net, exact=True)
    slopes = [row[0, 1] for row in pieces.rows]
    keep = [0, *(i for i in range(1, len(slopes)) if slopes[i] != slopes[i - 1])]
    return [slopes[i] for i in keep]


def test_concatenated_blocks_build_the_target_exactly():
    net = target_in_concatenated()
    x = np.linspace(-4, 4, 257)
    np.testing.assert_array_equal(net(x[:, None])[:, 0], target(x))
    assert exact_slopes(net) == [Fraction(0), Fraction(1), Fraction(2)]


quarter = st.integers(-12, 12).map(lambda i: i / 4)


@given(st.tuples(*[quarter] * 7))
def test_a_long_skip_has_one_kink_or_equal_outer_slopes(weights):
    slopes = exact_slopes(long_skip_unit(*weights))
    assert len(slopes) <= 2 or (len(slopes) == 3 and slopes[0] == slopes[2])


def test_the_certificate_bounds_every_long_skip_from_below():
    found = certify()
    assert found.distance == min(found.one_kink, found.two_kinks) > 0.1
    x = np.linspace(-1.0, 2.0, 301)
    weights = Draws(5).normal(3000, 7)
    for row in weights:
        error = abs(long_skip_unit(*row)(x[:, None])[:, 0] - target(x)).max()
        assert error >= found.distance


def test_more_points_sharpen_the_certificate():
    coarse, fine = certify(points=13), certify(points=25)  # nested grids
    assert coarse.distance <= fine.distance + 1e-9


def test_the_distance_on_the_line_is_attained_at_one_quarter():
    best = long_skip_unit(1.0, -0.5, 1.0, 0.0, 2.0, 0.0, 0.25)
    x = np.linspace(-50, 50, 100001)
    error = abs(best(x[:, None])[:, 0] - target(x)).max()
    assert error == pytest.approx(DISTANCE_ON_LINE, abs=1e-12)
    # The bound on an interval is below it, and grows with the interval.
    short, long = certify(-1.0, 2.0, points=13), certify(-3.0, 4.0, points=29)
    assert short.distance < long.distance <= DISTANCE_ON_LINE


def test_an_interval_without_both_kinks_is_refused():
    with pytest.raises(InvalidArgumentError, match="kinks are at 0 and 1"):
        certify(0.5, 2.0)
