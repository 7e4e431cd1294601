import jax.numpy as jnp
import numpy as np
import pytest
from expressivity.nets import Draws
from hypothesis import given, strategies as st

from layerwise.errors import InputError, InvalidArgumentError
from layerwise.expressivity.compile import compile_net
from layerwise.expressivity.constructions import (
    LongSkip,
    additive,
    average_pool,
    concatenated,
    concatenated_minimal,
    join_branches,
    max_pool,
    merge_affine,
    pool_windows,
    split_affine,
)
from layerwise.expressivity.graph import (
    RELU,
    Activation,
    Concat,
    Input,
    Join,
    MaxPool,
    Net,
    Pointwise,
    affine,
    affine_of,
    concat,
    join,
    relu,
)


TANH = Activation("tanh", np.tanh, jnp.tanh)

GEOMETRIES = {  # spatial shape, window, strides, padding
    "1d": ((12,), 3, None, 0),
    "1d overlap": ((13,), 5, 2, 2),
    "2d": ((6, 6), 2, None, 0),
    "2d overlap, border": ((7, 7), 3, 2, 1),
    "2d dense": ((5, 4), 3, 1, 1),
    "2d oblong": ((6, 8), (2, 4), (1, 2), (0, 1)),
    "global": ((7, 7), 7, None, 0),
}


def reference_pool(x, shape, window, strides, padding, how):
    """Slides windows over an array padded with NaN, one place at a time."""
    n = len(shape)
    sizes, pads = np.broadcast_to(window, n), np.broadcast_to(padding, n)
    steps = sizes if strides is None else np.broadcast_to(strides, n)
    padded = np.pad(
        x.reshape(-1, *shape),
        [(0, 0), *((p, p) for p in pads)],
        constant_values=np.nan,
    )
    out = [(s + 2 * p - k) // t + 1 for s, k, t, p in zip(shape, sizes, steps, pads)]
    columns = []
    for corner in np.ndindex(*out):
        box = tuple(slice(c * t, c * t + k) for c, t, k in zip(corner, steps, sizes))
        patch = padded[(slice(None), *box)].reshape(len(x), -1)
        columns.append(how(patch, axis=1))
    return np.stack(columns, axis=1)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_pooling_equals_the_reference(name):
    shape, window, strides, padding = GEOMETRIES[name]
    windows, out = pool_windows(shape, window, strides=strides, padding=padding)
    size = int(np.prod(shape))
    assert len(windows) == np.prod(out)
    x = Draws(1).normal(200, size)
    args = (shape, window, strides, padding)
    average = average_pool(windows, size)
    assert average.n_layers == 0
    assert abs(average(x) - reference_pool(x, *args, np.nanmean)).max() < 1e-12
    expected = reference_pool(x, *args, np.nanmax)
    for carry in ("skip", "relu"):
        net = compile_net(max_pool(windows, size), carry=carry)
        assert abs(net(x) - expected).max() < 1e-12
        longest = max(len(w) for w in windows)
        assert net.n_layers == int(np.ceil(np.log2(longest)))
    net = compile_net(max_pool(windows, size), carry="skip")
    assert net.n_units == sum(len(w) - 1 for w in windows)
    kinds = {type(n) for n in net.nodes()}
    assert not kinds & {MaxPool, Join}


@pytest.mark.parametrize(("n", "depth"), [(2, 1), (3, 2), (5, 3), (9, 4), (49, 6)])
def test_a_window_of_n_takes_log_layers_and_n_minus_one_relus(n, depth):
    net = compile_net(max_pool([np.arange(n)], n))
    assert (net.n_layers, net.n_units) == (depth, n - 1)


def test_channels_are_pooled_apart():
    windows, shape = pool_windows((4, 4), 2, channels=3)
    x = Draws(2).normal(5, 4, 4, 3)
    net = compile_net(max_pool(windows, 48))
    expected = x.reshape(5, 2, 2, 2, 2, 3).max(axis=(2, 4))
    np.testing.assert_array_equal(
        net(x.reshape(5, -1)).reshape(5, *shape).round(12), expected.round(12)
    )


def test_without_skips_after_a_relu():
    """Nothing but affine maps and ReLUs in a chain; right for x >= 0, wrong below."""
    net = compile_net(max_pool([np.arange(5)], 5), carry="nonnegative")
    assert all(len(n.parents) <= 1 for n in net.nodes())
    x = Draws(3).normal(200, 5)
    assert abs(net(abs(x))[:, 0] - abs(x).max(axis=1)).max() < 1e-12
    below = -1.0 - abs(x)
    assert abs(net(below)[:, 0] - below.max(axis=1)).max() > 0.5


@pytest.mark.parametrize(("d", "n"), [(12, 3), (20, 5), (8, 8)])
def test_average_pooling_has_rank_d_over_n(d, n):
    windows, _ = pool_windows((d,), n)
    weight = average_pool(windows, d)(np.eye(d)).T
    np.testing.assert_array_equal(weight, np.kron(np.eye(d // n), np.full(n, 1 / n)))
    assert np.linalg.matrix_rank(weight) == d // n


def test_max_pooling_is_not_injective():
    net = max_pool([np.arange(2)], 2)
    assert net([1.0, 0.0]) == net([1.0, -1.0]) == 1.0


REFERENCE_JOINS = {
    "add": lambda p: p.sum(axis=0),
    "subtract": lambda p: p[0] - p[1],
    "mean": lambda p: p.mean(axis=0),
    "max": lambda p: p.max(axis=0),
    "product": lambda p: p.prod(axis=0),
    "quotient": lambda p: p[0] / p[1],
}


@pytest.mark.parametrize("size", [1, 4, 17])
@pytest.mark.parametrize("kind", Join.KINDS)
def test_every_join_compiles(kind, size):
    branches = 2 if kind in ("subtract", "quotient") else 3
    x = Draws(size).normal(500, branches, size)
    if kind in ("product", "quotient"):
        x = abs(x) + 0.1
    net = compile_net(join_branches(kind, size, branches))
    assert not any(isinstance(n, Join) for n in net.nodes())
    expected = REFERENCE_JOINS[kind](x.swapaxes(0, 1))
    error = abs(net(x.reshape(500, -1)) - expected) / np.maximum(1.0, abs(expected))
    assert error.max() < 1e-12


def test_products_of_any_sign_go_by_squares():
    net = compile_net(join_branches("product", 6, 3), product="squares")
    x = Draws(4).normal(500, 3, 6)
    assert (x < 0).any()
    assert abs(net(x.reshape(500, -1)) - x.prod(axis=1)).max() < 1e-12


@pytest.mark.parametrize("kind", ["product", "quotient"])
@pytest.mark.parametrize("bad", [-1.0, 0.0])
def test_a_log_product_refuses_what_it_has_no_logarithm_of(kind, bad):
    net = compile_net(join_branches(kind, 2), product="log")
    with pytest.raises(InputError, match=r"(?s)are not positive.*squares"):
        net([1.0, 2.0, 3.0, bad])


@given(
    seed=st.integers(0, 2**16),
    sizes=st.lists(st.integers(1, 6), min_size=2, max_size=4),
    out=st.integers(1, 5),
)
def test_proposition_1_and_theorem_3_undo_each_other(seed, sizes, out):
    draw = Draws(seed)
    weight, bias = draw.normal(out, sum(sizes)), draw.normal(out)
    parts = split_affine(weight, bias, sizes)
    x = draw.normal(20, sum(sizes))
    pieces = np.split(x, np.cumsum(sizes)[:-1], axis=1)
    summed = sum(v @ w.T + b for v, (w, b) in zip(pieces, parts))
    assert abs(summed - (x @ weight.T + bias)).max() < 1e-12
    merged = merge_affine(parts)
    np.testing.assert_array_equal(merged[0], weight)
    np.testing.assert_array_equal(merged[1], bias)


def test_fusion_is_theorem_3():
    """Affine branches that are added become one affine map of what they read."""
    draw = Draws(7)
    x = Input((4,))
    f = affine(relu(affine(x, draw.normal(5, 4))), draw.normal(3, 5), draw.normal(3))
    g = affine(x, draw.normal(3, 4), draw.normal(3))
    net = Net(x, join("add", f, g))
    compiled = compile_net(net)
    assert (net.n_affine, compiled.n_affine) == (3, 2)
    points = draw.normal(50, 4)
    assert abs(net(points) - compiled(points)).max() < 1e-12


# Theorem 4 ----------------------------------------------------------------------------


def random_target(seed, d, widths, out, activation=RELU):
    draw, hidden, fan_in = Draws(seed), [], d
    for width in widths:
        hidden.append((draw.normal(width, fan_in), draw.normal(width)))
        fan_in = width
    return LongSkip(
        hidden,
        draw.normal(out, fan_in),
        draw.normal(out, d),
        draw.normal(out),
        activation,
    )


@pytest.mark.parametrize("activation", [RELU, TANH], ids=lambda a: a.name)
@pytest.mark.parametrize("d", [1, 3, 10])
@pytest.mark.parametrize("widths", [(1, 1), (4, 5), (16, 3)])
def test_theorem_4_as_printed(d, widths, activation):
    target = random_target(d, d, widths, 2, activation)
    x = Draws(d + 50).normal(200, d)
    expected = target.net()(x)
    redundancy = Draws(d + 99).normal(2, widths[0])
    for a in (None, redundancy):
        built = concatenated(target, a)
        assert abs(built(x) - expected).max() < 1e-10
        # (t; s; s; x): h1 + 2 h0 + d entries reach the last affine map.
        assert built.output.parents[0].size == widths[1] + 2 * widths[0] + d


@pytest.mark.parametrize("d", [1, 4])
@pytest.mark.parametrize("layers", [1, 2, 3, 5, 8])
def test_theorem_4_minimal_and_additive_at_any_depth(layers, d):
    widths = tuple(2 + i % 3 for i in range(layers))
    target = random_target(layers, d, widths, 3)
    x = Draws(layers + 50).normal(200, d)
    expected = target.net()(x)
    scale = max(1.0, abs(expected).max())  # outputs grow with depth: errors with them
    for build in (concatenated_minimal, additive):
        net = build(target)
        assert abs(net(x) - expected).max() / scale < 1e-10
        assert (net.n_layers, net.n_units) == (layers, sum(widths))
        assert abs(compile_net(net)(x) - expected).max() / scale < 1e-10
    residual = additive(target)
    states = {n.size for n in residual.nodes() if isinstance(n, Join)}
    assert states == {d + sum(widths)}  # the lifted state keeps its width


def test_theorem_4_is_printed_for_two_layers():
    with pytest.raises(InvalidArgumentError, match="concatenated_minimal"):
        concatenated(random_target(0, 2, (3,), 1))


# Shapes are checked -------------------------------------------------------------------


def test_shapes_are_checked():
    x, y = Input((3,)), Input((2,))
    with pytest.raises(InvalidArgumentError, match="3 columns"):
        affine(x, np.ones((4, 2)))
    with pytest.raises(InvalidArgumentError, match="rows"):
        affine_of([x, y], [np.ones((4, 3)), np.ones((5, 2))], None)
    with pytest.raises(InvalidArgumentError, match="entrywise"):
        join("add", x, y)
    with pytest.raises(InvalidArgumentError, match="add, subtract"):
        join("divide", x, x)
    with pytest.raises(InvalidArgumentError, match="axis"):
        concat(Input((2, 3)), Input((3, 3)), axis=1)
    with pytest.raises(InputError, match=r"\(\.\.\., \(3,\)\)"):
        Net(x, x)(np.ones((3, 4)))
    assert concat(x, y).shape == (5,)
    assert isinstance(concat(x, y), Concat)


@pytest.mark.parametrize(
    ("window", "padding"), [(9, 0), (2, 2), ((2, 2, 2), 0)], ids=str
)
def test_windows_that_do_not_fit_are_refused(window, padding):
    with pytest.raises(InvalidArgumentError):
        pool_windows((4, 4), window, padding=padding)


def test_leaky_relu_and_clip_compile_to_relus():
    from layerwise.expressivity.piecewise import RELU as TABLE, constant

    table = TABLE.minimum(constant(6.0)) + TABLE.scaled(-1.0, 0.25).maximum(
        constant(-2.0)
    )
    odd = Activation("odd", table, lambda x: jnp.asarray(table(np.asarray(x))), table)
    x = Input((3,))
    net = Net(x, Pointwise((x,), (3,), odd))
    compiled = compile_net(net)
    assert {
        n.activation.name for n in compiled.nodes() if isinstance(n, Pointwise)
    } == {"relu"}
    points = 8 * Draws(0).normal(500, 3)
    assert abs(net(points) - compiled(points)).max() < 1e-12
