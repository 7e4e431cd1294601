import os
import zlib

import jax
import pytest
from hypothesis import settings


# Compilation makes the first example slow, hence no deadline. Examples are the same in
# every run, so that a failure in CI is a failure here.
settings.register_profile(
    "default", deadline=None, derandomize=True, max_examples=25, database=None
)
settings.register_profile("thorough", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not any(item.get_closest_marker("gpu") for item in items):
        return
    if jax.default_backend() == "cpu":
        skip = pytest.mark.skip(reason="needs an accelerator")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(skip)


@pytest.fixture
def key(request: pytest.FixtureRequest) -> jax.Array:
    """A key of this test's own: the same in every run, another in every test."""
    return jax.random.key(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture
def x64():
    """Runs the test in double precision, and leaves the setting as it was."""
    with jax.enable_x64(True):
        yield
