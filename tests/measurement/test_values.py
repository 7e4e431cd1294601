"""What is measured equals stored values and cotangents, on forty small networks."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import layerwise as lw
from layerwise.tracing.model import as_function
from tests.measurement import models, program_models
from tests.measurement.tagged import CASES, explicit


assert models  # imported, as the next is, to list their cases
assert program_models


# A network in each of these runs always, in one precision; all of them in both when
# slow tests do.
QUICK = ("a_cond", "nnx_module")
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
RUNS = [
    pytest.param(
        name,
        dtype,
        marks=()
        if (name in QUICK and dtype == "float64")
        or (name == "leaky_relu_with_a_slope" and dtype == "float32")
        else pytest.mark.slow,
    )
    for name in CASES
    for dtype in TOLERANCE
]


def site_names(m):
    """Names of the sites, those that come again numbered."""
    count: collections.Counter[str] = collections.Counter()
    names = []
    for s in m.sites:
        name = "input" if s.kind == "input" else f"{s.path}.{s.kind}"
        count[name] += 1
        names.append(name if count[name] == 1 else f"{name}#{count[name]}")
    return names


def test_there_are_enough_networks():
    assert len(CASES) >= 30


@pytest.mark.parametrize(("name", "dtype"), RUNS)
def test_every_moment_is_the_explicit_one(name, dtype, key):
    with jax.enable_x64(dtype == "float64"):
        check(CASES[name](), jnp.dtype(dtype), key)


def check(case, dtype, key):
    inputs = [
        jax.random.randint(key, shape, 0, case.integers)
        if case.integers
        else (1.1 * jax.random.normal(jax.random.fold_in(key, i), shape) + 0.2).astype(
            dtype
        )
        for i, shape in enumerate(case.shapes)
    ]
    function = as_function(case.model, kwargs=case.kwargs, rngs=case.rngs)
    if case.params is not None:
        params = case.params(key)
    elif function.params is not None:
        params = function.params
    else:
        assert function.init is not None
        params = function.init(key, *inputs)
    leaves, tree = jax.tree.flatten(params)
    noise = [
        jax.random.normal(jax.random.fold_in(key, i), x.shape)
        for i, x in enumerate(leaves)
    ]
    params = jax.tree.unflatten(
        tree, [(x + 0.1 * n).astype(dtype) for x, n in zip(leaves, noise, strict=True)]
    )
    if function.kind == "linen" and "batch_stats" in params:
        params["batch_stats"] = jax.tree.map(jnp.abs, params["batch_stats"])

    def loss(out):
        floats = [y for y in jax.tree.leaves(out) if hasattr(y, "shape")]
        parts = [
            jnp.sum(y * jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))
            for y in floats
            if jnp.issubdtype(y.dtype, jnp.floating)
        ]
        return jnp.sum(jnp.stack(parts))

    apply = case.plain or function.apply
    values, cotangents = explicit(apply, params, inputs, loss)
    got = lw.measure(
        case.model, params, tuple(inputs), draws=1, loss=loss, kwargs=case.kwargs,
        rngs=case.rngs, redraw="resample",
    )  # fmt: skip
    assert not got.untapped
    names = site_names(got)
    values = {k: v for k, v in values.items() if not k.startswith("input ")}
    # A branch that is not taken is a site without a reading.
    ran = [n for n, r in zip(names, got.read["forward"][0], strict=True) if r]
    assert set(values) <= set(ran), set(values) - set(ran)
    if case.whole:
        assert set(values) == set(ran), set(ran) - set(values)
    for direction, tensors in (("forward", values), ("backward", cotangents)):
        for name, want in values.items():
            want, i = tensors[name], names.index(name)
            rms = np.sqrt(np.mean(want**2))
            rtol = TOLERANCE[dtype.name]
            np.testing.assert_allclose(
                got.second_moment(direction)[0, i], rms**2, rtol=rtol, err_msg=name
            )
            np.testing.assert_allclose(
                got.mean[direction][0, i], want.mean(), atol=rtol * rms, err_msg=name
            )
