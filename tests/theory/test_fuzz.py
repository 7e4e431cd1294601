"""Random architectures: each prediction holds to its tolerance, or says it is measured.

Hypothesis draws depth, widths, operations, activation, graph and inputs; some hundred
networks are run for each. Every number that is not graded `measured` must be within 5
standard errors of the measured mean and the tolerance that the prediction states for
it. The second moment of a narrow deep network is log-normal over draws, so that a mean
of few is off by more than its standard error says: a miss counts once it is confirmed
on eight times as many networks. Those found on the way are tests by name.
"""

import functools
import os

import jax
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from layerwise.theory.predict import predict
from layerwise.theory.reach import FAILED
from tests.theory.architectures import (
    apart,
    build,
    draw,
    example,
    inputs,
    numbered,
    numbers,
)
from tests.theory.ensemble import mean_square, measure, misses
from tests.theory.found import FOUND


DRAWS = 256
SHARDS, SIZE = 15, int(os.environ.get("FUZZ", "6"))
"""Sets of architectures, and how many of each are tried."""
RANDOM = settings(
    deadline=None,
    database=None,
    phases=[Phase.generate],  # an architecture is printed as it is, not made smaller
    suppress_health_check=list(HealthCheck),
)


def check(architecture, draws=0):
    """Predicts and measures; what has no rule is only sampled if `draws` is not 0."""
    model, shapes = build(architecture)
    x = jax.numpy.asarray(inputs(architecture))
    weights, law = architecture.weights, None
    if weights != "normal":
        law = functools.partial(apart, shapes, weights=weights)
    prediction = predict(model, example(shapes), x, draws=draws, law=law)
    failed = [v for v in prediction.sampled.values() if v.startswith(FAILED)]
    assert not failed, (architecture, failed)
    run = functools.partial(
        measure,
        prediction,
        functools.partial(draw, shapes, weights=weights),
        x,
        batch=DRAWS,
        compiled=False,
    )
    if misses(prediction, run(draws=DRAWS)):
        found = misses(prediction, run(draws=8 * DRAWS, seed=1))
        assert not found, "\n".join([repr(architecture), *found])


@pytest.mark.slow
@settings(RANDOM, max_examples=4)
@given(numbers(SHARDS))
def test_random_architectures_with_what_is_sampled(number):
    check(numbered(number), draws=1)


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(SHARDS))
def test_many_random_architectures(shard):
    @seed(shard)
    @settings(RANDOM, max_examples=SIZE)
    @given(numbers(shard))
    def run(number):
        check(numbered(number))

    run()


@pytest.mark.slow
@pytest.mark.parametrize("name", FOUND)
def test_those_that_failed_once(name):
    check(FOUND[name])


def test_the_squares_of_what_is_small_are_measured():
    size, square = mean_square(jax.numpy.full(4, 1e-27))
    assert float(size) ** 2 * float(square) == pytest.approx(1e-54, rel=1e-5)
