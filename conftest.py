"""Fixtures of the doctests; those of the tests are in tests/conftest.py.

Nothing here imports layerwise at the top: jaxtyping's import hook, which checks the
annotations while the tests run, must come first.
"""

import os

import pytest


os.environ.setdefault("MPLBACKEND", "Agg")
# Most of a short test is XLA compiling programs that run once. The slow tests compile
# as users do: `make test-slow` sets the variable to nothing.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")


@pytest.fixture(autouse=True)
def _doctest_names(request: pytest.FixtureRequest) -> None:
    """Gives doctests `jax`, `jnp`, `np` and `lw`; other tests do not wait for them."""
    if not isinstance(request.node, pytest.DoctestItem):
        return
    import jax
    import jax.numpy as jnp
    import numpy as np

    import layerwise as lw

    namespace = request.getfixturevalue("doctest_namespace")
    namespace.update(jax=jax, jnp=jnp, np=np, lw=lw)
