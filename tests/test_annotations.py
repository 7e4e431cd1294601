"""Annotations are checked while tests run: the import hook in conftest.py is there."""

import jax.numpy as jnp
import pytest
from beartype.roar import BeartypeCallHintViolation

from layerwise.measurement.taps import absent, tap
from layerwise.tracing.graph import from_jaxpr


def test_a_wrong_type_is_refused():
    with pytest.raises(BeartypeCallHintViolation):
        from_jaxpr(3)  # type: ignore[arg-type]
    with pytest.raises(BeartypeCallHintViolation):
        absent((1.5,), 0)  # type: ignore[arg-type]


def test_what_jax_decorates_is_checked_and_stays_what_jax_made():
    assert hasattr(tap, "defvjp")
    with pytest.raises(BeartypeCallHintViolation):
        tap(jnp.ones(3), jnp.zeros(2), None, (3,))  # type: ignore[arg-type]
