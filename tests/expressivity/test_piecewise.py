import numpy as np
import pytest
from hypothesis import given, strategies as st

from layerwise.errors import InvalidArgumentError
from layerwise.expressivity.piecewise import (
    IDENTITY,
    RELU,
    PiecewiseLinear,
    constant,
)


GRID = np.linspace(-9.0, 9.0, 721) + 1e-3  # beside the breaks of small numbers


quarter = st.integers(-12, 12).map(lambda i: i / 4)
hinges = st.tuples(quarter, quarter, st.lists(st.tuples(quarter, quarter), max_size=3))


def build(drawn):
    """A sum of hinges with dyadic coefficients, so that float64 is exact."""
    slope, shift, kinks = drawn
    total = IDENTITY.scaled(slope, shift)
    for at, change in kinks:
        total = total + RELU.after(IDENTITY.scaled(1.0, at)).scaled(change)
    return total


@given(f=hinges, g=hinges)
def test_the_algebra_is_that_of_functions(f, g):
    f, g = build(f), build(g)
    a, b = f(GRID), g(GRID)
    for table, expected in (
        (f + g, a + b),
        (f.maximum(g), np.maximum(a, b)),
        (f.minimum(g), np.minimum(a, b)),
        (f.scaled(-1.5, 2.0), 2.0 - 1.5 * a),
        (f.after(g), f(b)),
        (f.select(g, constant(1.0), constant(0.0)), 1.0 * (a >= b)),
    ):
        # Ties and breaks are at dyadic points or their quotients; the grid avoids
        # most, and continuous functions do not care.
        wrong = abs(table(GRID) - expected) > 1e-9
        assert np.count_nonzero(wrong) <= (0 if table.is_continuous else 1)


@given(f=hinges)
def test_the_pieces_are_the_fewest(f):
    f = build(f)
    assert all(a != b for a, b in zip(f.slopes, f.slopes[1:]))
    assert f.is_continuous


def test_known_functions():
    absolute = IDENTITY.maximum(IDENTITY.scaled(-1.0))
    assert absolute.slopes == (-1.0, 1.0)
    clip = RELU.minimum(constant(6.0))
    assert (clip.breaks, clip.slopes) == ((0.0, 6.0), (0.0, 1.0, 0.0))
    step = IDENTITY.select(constant(0.0), constant(1.0), constant(0.0))
    assert not step.is_continuous


def test_malformed_tables_are_refused():
    with pytest.raises(InvalidArgumentError, match="separate"):
        PiecewiseLinear((0.0,), (1.0,), (0.0,))
    with pytest.raises(InvalidArgumentError, match="increase"):
        PiecewiseLinear((1.0, 0.0), (1.0, 2.0, 3.0), (0.0, 0.0, 0.0))
