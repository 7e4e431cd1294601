"""Fixtures of the doctests; those of the tests are in tests/conftest.py.

Nothing here imports layerwise at the top: beartype's import hook, which checks the
annotations while the tests run, must come first.
"""

import os
import zlib

import pytest
from beartype import BeartypeConf, BeartypeDecorPlace
from beartype.claw import beartype_package


# Types in annotations are checked while tests run, and only then. Decorators of JAX
# make objects, which must stay outermost. Left out are modules whose annotations name
# what is imported for type checkers alone.
beartype_package(
    "layerwise",
    conf=BeartypeConf(
        claw_decor_place_func=BeartypeDecorPlace.FIRST,
        claw_is_pep526=False,
        claw_skip_package_names=(
            "layerwise.report.describe",
            "layerwise.report.report",
        ),
    ),
)

os.environ.setdefault("MPLBACKEND", "Agg")
# Most of a short test is XLA compiling programs that run once. The slow tests compile
# as users do: `make test-slow` sets the variable to nothing.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Lets one machine run a part of the tests, chosen by their names alone."""
    parser.addoption("--part", metavar="K/N", help="one of N parts: 0/6 to 5/6")


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Leaves out what is in another part."""
    if not (part := config.getoption("--part")):
        return
    k, n = map(int, part.split("/"))
    other = [x for x in items if zlib.crc32(x.nodeid.encode()) % n != k]
    config.hook.pytest_deselected(items=other)
    left_out = set(map(id, other))
    items[:] = [x for x in items if id(x) not in left_out]


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
