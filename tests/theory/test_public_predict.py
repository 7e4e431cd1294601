"""`lw.predict` as a user calls it: laws, methods, tables, rules of their own."""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import layerwise as lw
from layerwise.theory.registry import coverage_table
from layerwise.theory.state import Grade


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3))(x))
        x = nn.relu(nn.Conv(8, (3, 3), (2, 2))(x))
        return nn.Dense(4)(x.reshape(x.shape[0], -1))


INPUTS = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))


def test_a_scheme_by_name_and_its_law_are_the_same_prediction():
    named = lw.predict(Net(), "kaiming_fan_in", INPUTS)
    law = lw.scheme_law(Net(), INPUTS, "kaiming_fan_in")
    given = lw.predict(Net(), law, INPUTS)
    np.testing.assert_array_equal(named.curve("forward"), given.curve("forward"))
    q = float(jnp.mean(INPUTS**2))
    # One pixel of padding: 3 n - 2 of 3 n connections, per axis.
    assert named.second["forward"][named.find("u", 1)] == pytest.approx(
        2 * q * (22 / 24) ** 2, rel=0.05
    )
    assert named.grade["forward"][named.find("u", 1)] is Grade.EXACT


def test_parameters_stand_for_networks_of_their_second_moments():
    params = Net().init(jax.random.key(0), INPUTS)
    doubled = jax.tree.map(lambda x: 2 * x, params)
    once, twice = (lw.predict(Net(), p, INPUTS) for p in (params, doubled))
    ratio = twice.curve("forward")[1:] / once.curve("forward")[1:]
    np.testing.assert_allclose(ratio, [4.0, 16.0, 64.0], rtol=1e-6)


def test_the_table_has_a_measurement_s_columns_and_the_grade():
    got = lw.predict(Net(), None, INPUTS)
    frame = got.to_frame()
    columns = ["layer", "path", "kind", "direction", "draw", "statistic", "value"]
    assert list(frame.columns) == [*columns, "grade"]
    assert set(frame["statistic"]) >= {"mean", "variance", "second_moment"}
    for text in (str(got), got._repr_html_()):
        assert "Conv_1" in text
        assert got.coverage in text
    assert "zero padding loses" in got.reason("Conv_0")


def test_without_sampling_all_that_is_said_is_the_same_and_the_rest_is_left_out():
    class Residual(nn.Module):
        """A branch and its trunk, with a softmax between them."""

        @nn.compact
        def __call__(self, x):
            first = nn.Dense(16)(x)
            mixed = nn.softmax(nn.Dense(16)(first)) + first
            return nn.Dense(4)(nn.Dense(16)(nn.relu(mixed)))

    x = jax.random.normal(jax.random.key(2), (4, 8))
    steps: list[tuple[int, int]] = []
    bare = lw.predict(
        Residual(), None, x, draws=0, progress=lambda i, n: steps.append((i, n))
    )
    full = lw.predict(Residual(), None, x, draws=4)
    assert bare.curve_grade("forward") == ("exact",) * 3 + ("",) * 2
    assert bare.curve_grade("backward") == ("",) * 5
    assert full.curve_grade("forward")[3:] == ("measured",) * 2
    known = np.array(bare.curve_grade("forward")) != ""
    for values in (bare, full):
        assert np.isfinite(values.curve("forward")[known]).all()
    np.testing.assert_array_equal(
        bare.curve("forward")[known], full.curve("forward")[known]
    )
    assert np.isnan(bare.curve("forward")[~known]).all()
    assert bare.coverage.startswith("Left out: what depends on ")
    assert [done for done, _ in steps] == list(range(len(steps)))


def test_the_coverage_page_is_that_of_the_registry():
    page = Path(__file__).parents[2] / "docs" / "coverage.md"
    assert page.read_text() == coverage_table(), (
        "python -m layerwise.theory.coverage > docs/coverage.md"
    )
