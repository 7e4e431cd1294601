"""Random architectures: each prediction holds to its tolerance, or says it is measured.

Hypothesis draws depth, widths, operations, activation, graph and inputs; some hundred
networks are run for each. Every number that is not graded `measured` must be within 5
standard errors of the measured mean and the tolerance that the prediction states for
it. The second moment of a narrow deep network is log-normal over draws, so that a mean
of few is off by more than its standard error says: a miss counts once it is confirmed
on eight times as many networks. Those found on the way are tests by name.
"""

import functools

import jax
import pytest
from hypothesis import HealthCheck, given, settings

from layerwise.theory.predict import predict
from tests.theory.architectures import (
    Architecture,
    architectures,
    build,
    draw,
    example,
    inputs,
)
from tests.theory.ensemble import measure, misses


DRAWS = 256
QUIET = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]


def check(architecture):
    model, shapes = build(architecture)
    x = jax.numpy.asarray(inputs(architecture))
    prediction = predict(model, example(shapes), x, draws=4)
    run = functools.partial(
        measure, prediction, functools.partial(draw, shapes), x, batch=32
    )
    if misses(prediction, run(draws=DRAWS)):
        found = misses(prediction, run(draws=8 * DRAWS, seed=1))
        assert not found, "\n".join([repr(architecture), *found])


@given(architectures)
@settings(max_examples=4, deadline=None, suppress_health_check=QUIET)
def test_random_architectures(architecture):
    check(architecture)


@pytest.mark.slow
@given(architectures)
@settings(max_examples=20, deadline=None, suppress_health_check=QUIET)
def test_many_random_architectures(architecture):
    check(architecture)


FOUND = {
    # A maximum sits where the power is high, and so is the gate's other factor there.
    "factors behind a maximum": Architecture(
        ("gate",), act="leaky", width=32, gain=1.0, head="max", inputs="white", size=6
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_those_that_failed_once(name):
    check(FOUND[name])
