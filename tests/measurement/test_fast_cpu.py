"""Every faster form against the plain equation: values and gradients, to rounding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings, strategies as st

import layerwise as lw
from layerwise.measurement import convolution, fast_cpu
from layerwise.tracing.graph import evaluate, from_jaxpr


# Sums of up to a few thousand float32 products, added in another order: each rounding
# is 6e-8 of the largest partial sum, of which a sum has a few.
RTOL = 2e-5

# Every example is compiled twice, which takes most of a second.
FEW = settings(max_examples=3, suppress_health_check=list(HealthCheck))
MANY = settings(max_examples=60, suppress_health_check=list(HealthCheck))


def rewritten(f, *args, counts=None):
    """Returns `f` evaluated with the faster forms, and notes which were used."""

    def override(equation, operands):
        out = fast_cpu.faster(equation, operands)
        if counts is not None and out is not None:
            counts.append(equation.name)
        return out

    graph = from_jaxpr(jax.make_jaxpr(f)(*args))
    return lambda *args: evaluate(graph, args, override=override)[0]


def assert_close(actual, expected, rtol=RTOL):
    scale = float(jnp.max(jnp.abs(expected.astype(jnp.float32)), initial=0.0)) + 1e-30
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    np.testing.assert_allclose(
        np.asarray(actual, np.float64) / scale,
        np.asarray(expected, np.float64) / scale,
        rtol=0,
        atol=rtol,
    )


def check(f, args, *, rtol=RTOL, argnums=(0,), used=True):
    """Compares values and gradients of `f` and of its rewritten form."""
    counts = []
    g = rewritten(f, *args, counts=counts)

    def both(h):
        @jax.jit
        def run(args, cotangent):
            def of(*chosen):
                every = list(args)
                for i, x in zip(argnums, chosen, strict=True):
                    every[i] = x
                return h(*every)

            y, transpose = jax.vjp(of, *(args[i] for i in argnums))
            return y, transpose(cotangent.astype(y.dtype))

        return run

    shape = jax.eval_shape(f, *args)
    cotangent = jax.random.normal(jax.random.key(7), shape.shape, jnp.float32)
    y, grads = both(f)(args, cotangent)
    fast_y, fast_grads = both(g)(args, cotangent)
    assert_close(fast_y, y, rtol)
    for fast_grad, grad in zip(fast_grads, grads, strict=True):
        assert_close(fast_grad, grad, rtol)
    assert bool(counts) == used


LAYOUTS = {1: ("NHC", "HIO", "NHC"), 2: ("NHWC", "HWIO", "NHWC")}
OTHER_LAYOUTS = [
    ("NCHW", "OIHW", "NCHW"),
    ("NCHW", "HWIO", "NHWC"),
    ("HWNC", "IOHW", "CNHW"),
    ("NWHC", "WHIO", "NHWC"),
]


def conv(x, w, *, layout=LAYOUTS[2], strides=(1, 1), padding="SAME", **kwargs):
    return jax.lax.conv_general_dilated(
        x, w, strides, padding, dimension_numbers=layout, **kwargs
    )


@st.composite
def convolutions(draw):
    rank = draw(st.integers(1, 2))
    axes = st.tuples
    size = axes(*[st.integers(1, 7)] * rank)
    kernel = draw(axes(*[st.integers(1, 4)] * rank))
    return {
        "space": draw(size),
        "kernel": kernel,
        "strides": draw(axes(*[st.integers(1, 5)] * rank)),
        "padding": draw(axes(*[axes(*[st.integers(-1, 3)] * 2)] * rank)),
        "dilation": draw(axes(*[st.integers(1, 2)] * rank)),
        "batch": draw(st.integers(1, 3)),
        "channels": draw(axes(st.integers(1, 5), st.integers(1, 5))),
    }


FORMS = {
    "by the limits": {},
    "products": {"_LARGE_KERNEL": 0, "_MANY_CHANNELS": 0, "_FEW_CHANNELS": 0},
    "transposed kernel": {"_MAX_PATCH_BYTES": 0, "_FEW_CHANNELS": 0},
}


@pytest.mark.parametrize("form", FORMS)
@FEW
@given(case=convolutions())
def test_convolution(form, case):
    check_convolution(form, case)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@MANY
@given(case=convolutions())
def test_many_convolutions(form, case):
    check_convolution(form, case)


def check_convolution(form, case):
    extent = [(k - 1) * d + 1 for k, d in zip(case["kernel"], case["dilation"])]
    padded = [h + sum(p) for h, p in zip(case["space"], case["padding"])]
    assume(all(0 < e <= h for e, h in zip(extent, padded)))
    c, o = case["channels"]
    x = jax.random.normal(jax.random.key(0), (case["batch"], *case["space"], c))
    w = jax.random.normal(jax.random.key(1), (*case["kernel"], c, o))
    f = functools.partial(
        conv,
        layout=LAYOUTS[len(case["space"])],
        strides=case["strides"],
        padding=case["padding"],
        rhs_dilation=case["dilation"],
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in FORMS[form].items():
            patch.setattr(convolution, name, value)
        check(f, (x, w))


@pytest.mark.parametrize("layout", OTHER_LAYOUTS[1:3])
def test_convolution_in_any_layout(layout, monkeypatch, key):
    for limit in ("_LARGE_KERNEL", "_MANY_CHANNELS"):
        monkeypatch.setattr(convolution, limit, 0)
    shape = {"N": 2, "C": 3, "H": 5, "W": 6}
    kernel = {"I": 3, "O": 4, "H": 3, "W": 2}
    x = jax.random.normal(key, [shape[i] for i in layout[0]])
    w = jax.random.normal(key, [kernel[i] for i in layout[1]])
    f = functools.partial(conv, layout=layout, strides=(2, 1), padding=((1, 0), (2, 1)))
    check(f, (x, w))


GEOMETRIES = {  # space, channels in and out, kernel, stride: shapes of real layers
    "F34's 7x7/2": (16, 3, 64, 7, 2),
    "F34's first stage": (8, 64, 64, 3, 1),
    "F34, halving": (8, 64, 128, 3, 2),
    "F34's last stage at 64 pixels": (2, 512, 512, 3, 1),
    "a map smaller than the kernel": (2, 16, 16, 5, 1),
    "one position": (4, 32, 64, 1, 1),
    "one position, halving": (4, 32, 64, 1, 2),
}


LARGE = ("F34's last stage at 64 pixels", "F34, halving", "F34's first stage")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n in LARGE)) for n in GEOMETRIES],
)
def test_convolution_of_real_layers(name, key):
    check_layer(name, "float32", key)


@pytest.mark.parametrize("name", list(GEOMETRIES)[:2])
def test_convolution_in_bfloat16(name, key):
    check_layer(name, "bfloat16", key)


def check_layer(name, dtype, key):
    h, c, o, k, s = GEOMETRIES[name]
    x = jax.random.normal(key, (2, h, h, c), dtype)
    w = jax.random.normal(key, (k, k, c, o), dtype)
    f = functools.partial(conv, strides=(s, s), padding=[(k // 2, k // 2)] * 2)
    # bfloat16 has 8 bits: outputs are rounded to 4e-3, and the plain gradient adds
    # partial sums that are rounded as well.
    check(f, (x, w), rtol=RTOL if dtype == "float32" else 1e-2)


def test_convolution_whose_kernel_is_computed_keeps_its_gradient(key):
    x = jax.random.normal(key, (2, 5, 5, 3))
    w = jax.random.normal(key, (3, 3, 3, 4))
    check(conv, (x, w), argnums=(0, 1))
    check(conv, (x, w), argnums=(1,))
    check(lambda x, w: conv(x, w * jnp.mean(x)), (x, w), argnums=(0, 1))


def test_convolution_under_vmap_and_scan(key):
    x = jax.random.normal(key, (2, 4, 4, 3))
    w = jax.random.normal(key, (5, 3, 3, 3, 3))
    f = rewritten(conv, x, w[0])

    def gradient(h):
        return jax.grad(lambda x, w: jnp.sum(jnp.sin(h(x, w))))

    assert_close(
        jax.vmap(gradient(f), (None, 0))(x, w),
        jax.vmap(gradient(conv), (None, 0))(x, w),
    )

    def deep(h):
        body = lambda x, w: (jnp.tanh(h(x, w)), None)
        return jax.grad(lambda x: jnp.sum(jnp.sin(jax.lax.scan(body, x, w)[0])))

    assert_close(deep(f)(x), deep(conv)(x))


FALLS_THROUGH = {
    "groups": lambda x, w: conv(x, w[:, :, :1], feature_group_count=4),
    "transposed": lambda x, w: conv(x, w, lhs_dilation=(2, 2), padding=[(2, 2)] * 2),
    "float16": lambda x, w: conv(x.astype("float16"), w.astype("float16")),
    "no examples": lambda x, w: conv(x[:0], w),
    "empty output": lambda x, w: conv(x[:, :2], w, padding="VALID"),
}


@pytest.mark.parametrize("name", FALLS_THROUGH)
def test_other_convolutions_are_left_alone(name, key):
    x = jax.random.normal(key, (2, 5, 5, 4))
    w = jax.random.normal(key, (3, 3, 4, 4))
    check(FALLS_THROUGH[name], (x, w), used=False)


def pool(x, *, size, strides, padding, dilation=None):
    return jax.lax.reduce_window(
        x,
        -jnp.inf,
        jax.lax.max,
        (1, *size, 1),
        (1, *strides, 1),
        ((0, 0), *padding, (0, 0)),
        window_dilation=None if dilation is None else (1, *dilation, 1),
    )


@st.composite
def pools(draw):
    rank = draw(st.integers(1, 2))
    each = lambda strategy: draw(st.tuples(*[strategy] * rank))
    size = each(st.integers(1, 4))
    return {
        "space": each(st.integers(1, 8)),
        "size": size,
        "strides": each(st.integers(1, 5)),
        # Padding below the window's size: a window of padding alone has no winner.
        "padding": tuple(
            (draw(st.integers(0, k - 1)), draw(st.integers(0, k - 1))) for k in size
        ),
        "ties": draw(st.booleans()),
    }


@FEW
@given(case=pools())
def test_max_pool(case):
    check_max_pool(case)


@pytest.mark.slow
@MANY
@given(case=pools())
def test_many_max_pools(case):
    check_max_pool(case)


def check_max_pool(case):
    padded = [h + sum(p) for h, p in zip(case["space"], case["padding"])]
    assume(all(k <= h for k, h in zip(case["size"], padded)))
    assume(np.prod(case["size"]) > 1)
    x = jax.random.normal(jax.random.key(0), (2, *case["space"], 3))
    if case["ties"]:
        x = jnp.maximum(jnp.round(x), 0)
    f = functools.partial(
        pool, size=case["size"], strides=case["strides"], padding=case["padding"]
    )
    check(f, (x,), rtol=1e-6)  # a few cotangents added in another order


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_max_pool_in_half_precision(dtype, key):
    x = jax.random.normal(key, (2, 9, 9, 3), dtype)
    f = functools.partial(pool, size=(3, 3), strides=(2, 2), padding=[(1, 1)] * 2)
    # One rounding of a sum of up to four, against three roundings.
    f32 = lambda x: f(x.astype(jnp.float32))
    counts = []
    check(f32, (x,), rtol=1e-2)
    assert_close(rewritten(f, x, counts=counts)(x), f(x), 0)
    assert counts == ["reduce_window_max"]


def test_max_pool_of_nan_and_dilated_windows(key):
    x = jax.random.normal(key, (2, 7, 7, 1)).at[0, 3, 3, 0].set(jnp.nan)
    f = functools.partial(pool, size=(3, 3), strides=(2, 2), padding=[(1, 1)] * 2)
    np.testing.assert_array_equal(rewritten(f, x)(x), f(x))
    g = functools.partial(
        pool, size=(2, 3), strides=(1, 2), padding=[(0, 0)] * 2, dilation=(2, 2)
    )
    y, transpose = jax.vjp(rewritten(g, x[1:]), x[1:])
    np.testing.assert_array_equal(y, g(x[1:]))
    # What comes back is what went in: every cotangent goes to one entry.
    assert_close(jnp.sum(transpose(y)[0]), jnp.sum(y))


@pytest.mark.parametrize(
    ("first", "second", "used"),
    [
        ((3, 4, 1), (1, 1, 5), True),
        ((1, 5), (7, 1), True),
        ((3, 1, 1), (1, 1, 5), True),
        ((3, 4, 1), (1, 4, 5), False),
        ((3, 1, 5), (1, 4, 1), False),
        ((1, 1), (3, 4), False),
    ],
)
def test_outer_products(first, second, used, key):
    keys = jax.random.split(key)
    args = tuple(map(jax.random.normal, keys, (first, second)))
    check(jax.lax.mul, args, argnums=(0, 1), used=used)
    half = [x.astype("bfloat16") for x in args]
    f = rewritten(jax.lax.mul, *half)
    assert_close(f(*half), jax.lax.mul(*half), 0)


def test_integers_are_left_alone():
    x = jnp.arange(64).reshape(1, 8, 8, 1)
    f = lambda x: jax.lax.reduce_window(
        x, np.iinfo(x.dtype).min, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
    )
    counts = []
    np.testing.assert_array_equal(rewritten(f, x, counts=counts)(x), f(x))
    assert not counts


@pytest.mark.slow
@pytest.mark.parametrize("name", ["f34", "resnet18", "vit_ti16"])
def test_a_measurement_is_the_same_without_rewrites(name):
    model = lw.zoo.registry.entry(name).build_small()
    both = [lw.measure(model, draws=2, rewrite=on) for on in (True, False)]
    for side in ("forward", "backward"):
        fast, plain = (m.curve(side) for m in both)
        np.testing.assert_allclose(fast, plain, rtol=1e-4)


def test_nothing_is_replaced_elsewhere(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not fast_cpu.on_cpu()
