import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings, strategies as st
from index_sets import Geometry, backward, connections, d_maximum, forward, maximum

import layerwise as lw
from helpers import F34_REFERENCE
from layerwise.tracing import as_function, trace
from layerwise.tracing.connections import Axis
from layerwise.tracing.model import abstract_params


def relu(x):
    return np.maximum(x, 0.0)


def d_relu(x):
    return (x > 0).astype(float)


@st.composite
def geometries(draw):
    rank = draw(st.integers(1, 3))
    groups = draw(st.integers(1, 2))
    most = {1: 9, 2: 6, 3: 4}[rank]
    axes = [
        (
            draw(st.integers(1, most)),
            draw(st.integers(1, 3)),
            draw(st.integers(1, 3)),
            draw(st.tuples(st.integers(0, 2), st.integers(0, 2))),
            draw(st.integers(1, 2)),
        )
        for _ in range(rank)
    ]
    size, taps, stride, pad, dilation = zip(*axes, strict=True)
    g = Geometry(
        size,
        taps,
        stride,
        pad,
        dilation,
        c_in=groups * draw(st.integers(1, 2)),
        c_out=groups * draw(st.integers(1, 2)),
        groups=groups,
    )
    assume(all(n > 0 for n in g.out_size))
    return g


def normals(seed, *shapes):
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return [
        np.asarray(jax.random.normal(k, s), np.float64)
        for k, s in zip(keys, shapes, strict=True)
    ]


def conv(x, w, g):
    letters = "HWD"[: len(g.size)]
    return jax.lax.conv_general_dilated(
        x[None],
        w,
        g.stride,
        g.pad,
        rhs_dilation=g.dilation,
        dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
        feature_group_count=g.groups,
    )[0]


@pytest.mark.slow
@settings(max_examples=8)
@given(g=geometries(), seed=st.integers(0, 2**31 - 1))
def test_index_sets_are_the_convolution_forward_and_backward(g, seed):
    x, w, b = normals(
        seed, (*g.size, g.c_in), (*g.taps, g.c_in // g.groups, g.c_out), (g.c_out,)
    )
    k = tuple(min(2, n) for n in g.out_size)
    one = (1,) * len(k)
    pool = Geometry(g.out_size, k, k, ((0, 0),) * len(k), one)  # not overlapping
    u, v, z = forward(g, x, w, b, relu, pool, maximum)
    (dz,) = normals(seed + 1, z.shape)
    _, du, dx = backward(g, w, u, v, d_relu, pool, d_maximum, dz)

    def layer(x, bias):
        u = conv(x, w, g) + bias
        return nn.max_pool(jax.nn.relu(u), k, k), u

    with jax.enable_x64(True):
        (got_z, got_u), pull = jax.vjp(layer, jnp.asarray(x), jnp.asarray(b))
        got_dx, got_db = pull((jnp.asarray(dz), jnp.zeros_like(got_u)))
    np.testing.assert_allclose(got_u, u, atol=1e-12)
    np.testing.assert_allclose(got_z, z, atol=1e-12)
    np.testing.assert_allclose(got_dx, dx, atol=1e-12)
    np.testing.assert_allclose(got_db, du.reshape(-1, g.c_out).sum(0), atol=1e-12)


@given(g=geometries())
def test_traced_connection_count_is_that_of_the_index_sets(g):
    features = g.c_out

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Conv(
                features,
                g.taps,
                g.stride,
                g.pad,
                kernel_dilation=g.dilation,
                feature_group_count=g.groups,
            )(x)

    x = jnp.ones((2, *g.size, g.c_in))
    model = as_function(Net())
    (layer,) = trace(model, abstract_params(model, (x,)), (x,)).layers
    c = layer.connections
    assert c.total == connections(g)
    assert c.n_out == math.prod(g.out_size) * g.c_out
    assert c.n_in == math.prod(g.size) * g.c_in
    assert c.fan_in == math.prod(g.taps) * g.c_in // g.groups
    assert c.fan_out == math.prod(g.taps) * g.c_out // g.groups


@given(
    n=st.integers(1, 12),
    k=st.integers(1, 5),
    d=st.integers(1, 3),
    e=st.integers(1, 3),
    lo=st.integers(-2, 4),
    hi=st.integers(-2, 4),
)
def test_axis_counts_what_a_convolution_of_ones_sums(n, k, d, e, lo, hi):
    """Transposed, dilated, cropped: the number of ones that reach the outputs."""
    axis = Axis(n, k, stride=2, pad=(lo, hi), kernel_dilation=d, input_dilation=e)
    assume((n - 1) * e + 1 + lo + hi >= (k - 1) * d + 1)
    out = jax.lax.conv_general_dilated(
        jnp.ones((1, n, 1)),
        jnp.ones((k, 1, 1)),
        (2,),
        [(lo, hi)],
        lhs_dilation=(e,),
        rhs_dilation=(d,),
        dimension_numbers=("NHC", "HIO", "NHC"),
    )
    assert axis.n_outputs == out.shape[1]
    assert axis.connections == int(out.sum())
    by_run = np.zeros_like(axis.reach)
    for outputs, inputs in axis.runs:
        one_to_one = np.zeros_like(axis.reach)
        one_to_one[np.arange(axis.n_outputs)[outputs], np.arange(n)[inputs]] = 1.0
        by_run += one_to_one
    assert np.array_equal(by_run, axis.reach)
    for lag in range(-3, 4):
        pairs = [
            int(j - i)
            for p in range(axis.n_outputs)
            if 0 <= p + lag < axis.n_outputs
            for i in np.flatnonzero(axis.reach[p])
            for j in np.flatnonzero(axis.reach[p + lag])
        ]
        assert sorted(axis.between_taps(lag)) == sorted(pairs)


@pytest.mark.parametrize("n", [1, 2, 7, 56, 224])
def test_same_padding_closed_form(n):
    assert Axis(n, 3, 1, (1, 1)).connections == 3 * n - 2


def test_f34_counts_are_the_published_table():
    model = as_function(lw.zoo.f34())
    x = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    params = abstract_params(model, (x,))
    layers = trace(model, params, (x,)).layers
    assert len(layers) == 34
    for layer, want in zip(layers, F34_REFERENCE["layers"], strict=True):
        c = layer.connections
        got = (c.total, c.n_out, c.n_in, c.fan_in, c.fan_out)
        assert got == tuple(
            want[k] for k in ("eps", "M_conv_out", "M_in", "fan_in", "fan_out")
        )
    sizes = [x.size for x in jax.tree.leaves(params)]
    assert sum(sizes) == F34_REFERENCE["params_all_biases"]


@pytest.mark.parametrize(
    ("module", "shape", "fan_in", "fan_out", "total"),
    [
        (nn.Dense(7), (2, 5), 5, 7, 35),
        (nn.Dense(7), (2, 3, 5), 5, 7, 3 * 35),
        (nn.DenseGeneral((3, 4), axis=(-2, -1)), (2, 5, 6), 30, 12, 360),
        (nn.DenseGeneral(4, batch_dims=(0,)), (2, 5, 6), 6, 4, 2 * 5 * 24),
        (nn.ConvTranspose(4, (3,), strides=(2,)), (2, 5, 6), 18, 12, None),
    ],
)
def test_other_linear_operations(module, shape, fan_in, fan_out, total):
    x = jnp.ones(shape)
    model = as_function(module)
    (layer,) = trace(model, module.init(jax.random.key(0), x), (x,)).layers
    assert (layer.connections.fan_in, layer.connections.fan_out) == (fan_in, fan_out)
    if total is not None:
        assert layer.connections.total == total
