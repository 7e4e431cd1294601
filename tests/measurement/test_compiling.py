"""Programs that are run a few times."""

import jax
import jax.numpy as jnp

from layerwise.measurement import compiling


def test_options_that_xla_does_not_have_are_left_out(monkeypatch):
    monkeypatch.setitem(compiling._QUICK, "xla_no_such_option", True)
    program = jax.jit(lambda x: 2 * x).lower(jnp.ones(3))
    assert not compiling._is_known("xla_no_such_option")
    assert compiling.compile_once(program)(jnp.ones(3)).tolist() == [2.0, 2.0, 2.0]


def test_options_of_this_xla_are_known():
    assert all(map(compiling._is_known, compiling._QUICK))
