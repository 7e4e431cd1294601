"""What is measured, what is listed instead, and what a user leaves out."""

import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import layerwise as lw
from layerwise.errors import InvalidArgumentError, UnsupportedModelError
from layerwise.measurement.coverage import selected


def weights(key, *names):
    keys = jax.random.split(key, len(names))
    return {n: jax.random.normal(k, (6, 6)) / 2 for n, k in zip(names, keys)}


def row(m, name, direction="forward"):
    """Second moments of the site called ``path.kind``, over draws."""
    (i,) = (i for i, s in enumerate(m.sites) if f"{s.path}.{s.kind}" == name)
    return m.second_moment(direction)[:, i]


@pytest.mark.slow
def test_the_branch_that_a_draw_takes_is_measured(key):
    def model(p, x):
        x = x @ p["in"]
        yes, no = (lambda x, n=n: jnp.tanh(x @ p[n]) for n in ("yes", "no"))
        return jax.lax.cond(p["in"][0, 0] > 0, yes, no, x) @ p["out"]

    x = jax.random.normal(key, (5, 6))
    params = weights(key, "in", "yes", "no", "out")
    options: dict[str, Any] = {
        "draws": 7,
        "loss": jnp.sum,
        "statistics": ["weight_gradient"],
    }
    got = lw.measure(model, params, x, **options)
    together = lw.measure(model, params, x, **options, batch_size=4)
    taken = np.isfinite(row(got, "yes.u"))
    assert set(taken) == {True, False}
    assert taken[0] == (params["in"][0, 0] > 0)
    for m in (got, together):
        assert m.weight_gradient is not None
        for name, there in (("yes", taken), ("no", ~taken)):
            for kind in "uv":
                for direction in ("forward", "backward"):
                    second = row(m, f"{name}.{kind}", direction)
                    np.testing.assert_array_equal(np.isfinite(second), there)
            layer = m.layer_paths.index(name)
            np.testing.assert_array_equal(
                np.isfinite(m.weight_gradient[:, layer]), there
            )
        assert not m.nonfinite()  # a branch not taken is no overflow
        assert not m.untapped
    for d in ("forward", "backward"):
        np.testing.assert_allclose(
            got.second_moment(d), together.second_moment(d), rtol=1e-5
        )


def test_a_while_is_measured_forward_and_says_that_it_is_not_backward(key):
    def looped(p, x):
        body = lambda c: (jnp.tanh(c[0] @ p["body"]), c[1] + 1)
        count = jnp.int32(jnp.sum(x) * 0)
        x = jnp.tanh(x @ p["in"])
        return jax.lax.while_loop(lambda c: c[1] < 3, body, (x, count))[0] @ p["out"]

    def unrolled(p, x):
        x = jnp.tanh(x @ p["in"])
        for _ in range(3):
            x = jnp.tanh(x @ p["body"])
        return x @ p["out"]

    x = jax.random.normal(key, (5, 6))
    params = weights(key, "in", "body", "out")
    asked = ["weight_gradient", "extremes"]
    got = lw.measure(looped, params, x, draws=1, loss=jnp.sum, statistics=asked)
    want = lw.measure(unrolled, params, x, draws=1, loss=jnp.sum, statistics=asked)
    bodies = [row(want, f"body{n}.u") for n in ("", "#2", "#3")]
    np.testing.assert_allclose(row(got, "body.u"), np.mean(bodies, axis=0), rtol=1e-5)
    np.testing.assert_allclose(row(got, "out.u"), row(want, "out.u"), rtol=1e-5)
    # Behind the loop cotangents are known; in it and before it they are not.
    behind = row(got, "while.merge", "backward")
    np.testing.assert_allclose(behind, row(want, "body#3.v", "backward"), rtol=1e-5)
    for name in ("input.input", "in.u", "body.v"):
        assert np.isnan(row(got, name, "backward")).all()
    assert got.weight_gradient is not None
    np.testing.assert_array_equal(np.isfinite(got.weight_gradient[0]), [0, 0, 1])
    (note,) = got.untapped
    assert re.match(r"while at .*test_coverage.py:\d+ .*: no cotangent", note)
    assert not got.nonfinite()
    first, said, _, *rows = str(got).splitlines()
    assert first.startswith("1 network, ")
    assert said == f"Not measured: {note}."
    assert [line.split()[-1] for line in rows] == [s.path for s in got.sites]
    assert "nan" in rows[0]


def test_a_layer_behind_a_custom_derivative_is_listed(key):
    @jax.custom_vjp
    def hidden(x, w):
        return x @ w

    hidden.defvjp(lambda x, w: (x @ w, w), lambda w, g: (g @ w.T, None))
    model = lambda p, x: hidden(jnp.tanh(x @ p["in"]), p["hidden"]) @ p["out"]
    params = weights(key, "in", "hidden", "out")
    got = lw.measure(model, params, jnp.ones((2, 6)), draws=1)
    assert got.layer_paths == ("in", "out")
    assert len(got.untapped) == 1
    assert re.match(r"custom_vjp_call at .*test_coverage.py", got.untapped[0])


@pytest.mark.slow
def test_select_reduces_what_is_measured(key):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            for name in ("first", "block_a", "block_b", "last"):
                x = nn.relu(nn.Dense(5, name=name)(x))
            return x

    x = jax.random.normal(key, (4, 5))
    params = Net().init(key, x)
    whole = lw.measure(Net(), params, x, draws=2)
    some = lw.measure(Net(), params, x, draws=2, select="block_*")
    paths = {s.path for s in some.sites}
    assert paths == {"input", "block_a", "block_b", "last"}
    for select in (["block_a", "block_b"], lambda path: "block" in path):
        assert selected(whole.sites, select) == some.sites
    for i, site in enumerate(some.sites):
        np.testing.assert_allclose(
            some.second_moment("backward")[:, i],
            whole.second_moment("backward")[:, whole.sites.index(site)],
            rtol=1e-5,
        )
    q = some.curve("forward")
    np.testing.assert_array_equal(np.isnan(q[0]), [0, 1, 0, 0, 0])
    with pytest.raises(InvalidArgumentError, match=r"Did you mean 'block_a'"):
        selected(whole.sites, "blok_a")
    report = lw.propagate_variance(Net(), params, x, draws=2, select="block_*")
    assert np.isnan(report.table().q_mean[1])


def test_complex_numbers_are_refused(key):
    model = lambda p, x: jnp.abs(x.astype(jnp.complex64) @ p["w"])
    params = {"w": jax.random.normal(key, (3, 3), jnp.complex64)}
    with pytest.raises(UnsupportedModelError, match="w computes with complex numbers"):
        lw.measure(model, params, jnp.ones((2, 3)))
