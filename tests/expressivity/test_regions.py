import time
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from expressivity.nets import Draws, random_net
from hypothesis import given, strategies as st

from layerwise.errors import InputError, InvalidArgumentError, UnsupportedModelError
from layerwise.expressivity.cells import Polygons
from layerwise.expressivity.folding import (
    arrangement_regions,
    coincident_net,
    dense_net,
    folding_net,
    general_lines,
    hanin_rolnick_bound,
    montufar_lower_bound,
    serra_lower_bound,
    serra_upper_bound,
)
from layerwise.expressivity.graph import (
    EXP,
    Activation,
    Input,
    MaxPool,
    Net,
    affine,
    concat,
    join,
    pointwise,
    relu,
)
from layerwise.expressivity.piecewise import IDENTITY
from layerwise.expressivity.regions import (
    Slice,
    decompose_line,
    decompose_plane,
    decompose_space,
)


LEAKY = IDENTITY.maximum(IDENTITY.scaled(0.125))


# The folding construction -------------------------------------------------------------

# Linear pieces on all of R for 1, 2, 3, 4 folding layers.
ON_R = {2: (3, 6, 10, 18), 3: (4, 10, 28, 82), 4: (5, 18, 66, 258)}


@pytest.mark.parametrize("exact", [True, False], ids=["rational", "float"])
@pytest.mark.parametrize("pieces", ON_R)
def test_pieces_of_the_folding_net_on_the_line(pieces, exact):
    counts = [
        decompose_line(folding_net(1, pieces, folds), exact=exact).n_linear_regions
        for folds in (1, 2, 3, 4)
    ]
    assert tuple(counts) == ON_R[pieces]


@given(pieces=st.integers(1, 5), folds=st.integers(1, 3))
def test_inside_the_interval_there_are_p_to_the_l(pieces, folds):
    net = folding_net(1, pieces, folds)
    inside = decompose_line(net, low=0, high=Fraction(pieces, 2), exact=True)
    assert inside.n_linear_regions == pieces**folds
    ends = [row[0, 1] for row in inside.rows]
    assert set(map(abs, ends)) == {Fraction(pieces) ** (folds - 1)}


@pytest.mark.parametrize("pieces", [2, 3, 7])
def test_the_misprinted_fold_has_two_pieces(pieces):
    assert decompose_line(coincident_net(pieces), exact=True).n_linear_regions == 2


@pytest.mark.parametrize(
    ("pieces", "folds", "count"), [(2, 1, 44), (2, 2, 176), (3, 1, 198), (3, 2, 1782)]
)
def test_the_folding_net_reaches_montufars_bound_in_the_plane(pieces, folds, count):
    widths = [2 * pieces] * (folds + 1)
    net = folding_net(
        2,
        pieces,
        folds,
        last=general_lines(2 * pieces),
        readout=np.ones((1, 2 * pieces)),
    )
    found = decompose_plane(net, low=(0, 0), high=(pieces / 2, pieces / 2))
    assert found.n_linear_regions == found.n_activation_regions == count
    assert montufar_lower_bound(2, widths) == count


# Bounds -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("widths", "montufar", "serra", "upper"),
    [
        ((8, 8), 592, 925, 1369),
        ((8, 8, 8), 9472, 23125, 50653),
        ((16, 16), 8768, 11097, 18769),
    ],
)
def test_bounds(widths, montufar, serra, upper):
    assert montufar_lower_bound(2, widths) == montufar
    assert serra_lower_bound(2, widths) == serra
    assert serra_upper_bound(2, widths) == upper


@given(widths=st.lists(st.integers(2, 9), min_size=1, max_size=4))
def test_on_a_line_the_upper_bound_is_the_product(widths):
    assert serra_upper_bound(1, widths) == np.prod([n + 1 for n in widths])


@given(n=st.integers(1, 20), d=st.integers(1, 5))
def test_one_layer_is_an_arrangement_of_hyperplanes(n, d):
    assert serra_upper_bound(d, [n]) == arrangement_regions(d, n)


@given(
    d=st.integers(1, 3),
    widths=st.lists(st.integers(9, 14), min_size=1, max_size=3),
)
def test_bounds_are_in_order(d, widths):
    low, mid, high = (
        f(d, widths)
        for f in (montufar_lower_bound, serra_lower_bound, serra_upper_bound)
    )
    assert low <= mid <= high


def test_bounds_refuse_widths_that_they_do_not_cover():
    with pytest.raises(InvalidArgumentError, match="at least 6"):
        serra_lower_bound(2, (4, 4))
    with pytest.raises(InvalidArgumentError, match="wider"):
        montufar_lower_bound(3, (2, 2))
    assert hanin_rolnick_bound(2, 24) == 288.0


# Random networks ----------------------------------------------------------------------


@pytest.mark.parametrize("widths", [(32,), (32, 32), (16,) * 4], ids=str)
def test_along_a_line_there_are_about_as_many_pieces_as_neurons(widths):
    counts = []
    for seed in range(30):
        draw = Draws(1000 + seed)
        line = Slice.through(draw.normal(16), draw.normal(16))
        net = random_net(seed, 16, widths, bias=0.0)
        counts.append(decompose_line(net, line).n_linear_regions)
    mean, sem = np.mean(counts), np.std(counts, ddof=1) / np.sqrt(len(counts))
    neurons = sum(widths)
    if len(widths) == 1:
        assert set(counts) == {neurons + 1}  # every hyperplane crosses the line once
    # Hanin and Rolnick: proportional to neurons, not exponential in depth.
    assert abs(mean - neurons) < 5 * sem + 0.1 * neurons
    assert max(counts) < 2 * neurons


def test_float_and_rational_lines_agree():
    for seed in range(6):
        net = random_net(seed, 4, (6, 6, 6))
        draw = Draws(seed)
        line = Slice.through(draw.normal(4), draw.normal(4), orthonormal=False)
        found, exact = decompose_line(net, line), decompose_line(net, line, exact=True)
        assert found.n_linear_regions == exact.n_linear_regions
        assert found.n_activation_regions == exact.n_activation_regions
        np.testing.assert_allclose(
            found.cells.low[1:], exact.cells.low[1:].astype(float), atol=1e-9
        )


def brute_force_slopes(net, line, low, high, n=200_001):
    """Kinks that a fine grid sees: at most the count, and near it."""
    t = np.linspace(low, high, n)
    y = net(line.embed(t[:, None]))
    second = np.abs(np.diff(y, n=2, axis=0)).max(axis=1)
    kinked = second > 1e-11 * np.abs(y).max()
    return 1 + np.count_nonzero(kinked[1:] & ~kinked[:-1]) + kinked[0]


@pytest.mark.parametrize("seed", range(4))
def test_the_line_count_is_what_a_fine_grid_sees(seed):
    net = random_net(seed, 3, (7, 5))
    draw = Draws(seed + 70)
    line = Slice.through(draw.normal(3), draw.normal(3))
    found = decompose_line(net, line, low=-3.0, high=3.0)
    assert found.n_linear_regions == brute_force_slopes(net, line, -3.0, 3.0)


# The plane ----------------------------------------------------------------------------


def check_plane(net, found):
    """The rows are the network, inside the cells and not only at their centres."""
    centers = found.cells.interior()
    inputs = found.subspace.embed(centers).reshape(-1, *net.input.shape)
    outputs = net(inputs).reshape(len(centers), -1)
    scale = np.abs(outputs).max()
    assert abs(found.values(centers) - outputs).max() < 1e-9 * max(1.0, scale)
    batch = found.cells.batch
    for corner in range(3):  # a point near a vertex
        near = 0.999 * batch.vertices[:, corner] + 0.001 * centers
        inputs = found.subspace.embed(near).reshape(-1, *net.input.shape)
        outputs = net(inputs).reshape(len(centers), -1)
        assert abs(found.values(near) - outputs).max() < 1e-9 * max(1.0, scale)
    assert len(np.unique(found.pattern, axis=0)) == found.n_activation_regions


def test_a_3x64_net_in_a_square_is_fast_and_covers_it():
    net = random_net(0, 2, (64, 64, 64))
    start = time.perf_counter()
    found = decompose_plane(net, low=(-1, -1), high=(1, 1))
    count = found.n_linear_regions
    seconds = time.perf_counter() - start
    assert abs(found.cells.areas().sum() - 4.0) < 1e-9
    assert found.cells.areas().min() > 0
    assert seconds < 5.0
    assert 1000 < count <= found.n_activation_regions
    check_plane(net, found)


@given(
    seed=st.integers(0, 2**16),
    in_size=st.integers(2, 6),
    widths=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    bias=st.sampled_from([0.0, 0.5]),
)
def test_any_plane_through_any_net(seed, in_size, widths, bias):
    net = random_net(seed, in_size, tuple(widths), bias=bias)
    plane = Slice.through(*Draws(seed).normal(3, in_size))
    found = decompose_plane(net, plane, low=(-2, -1), high=(1, 3))
    assert abs(found.cells.areas().sum() - 12.0) < 1e-9
    assert found.n_linear_regions <= found.n_activation_regions
    assert found.n_activation_regions <= serra_upper_bound(2, widths)
    check_plane(net, found)


@pytest.mark.parametrize("widths", [(6,), (5, 5), (4, 4, 4)], ids=str)
def test_plane_and_programs_count_the_same(widths):
    net = random_net(len(widths), 2, widths)
    by_lp = decompose_space(net, bound=2.0)
    by_clipping = decompose_plane(net, low=(-2, -2), high=(2, 2))
    assert by_lp.n_activation_regions == by_clipping.n_activation_regions
    assert by_lp.n_linear_regions == by_clipping.n_linear_regions


@pytest.mark.parametrize(("d", "n"), [(1, 5), (2, 6), (3, 5), (4, 5)])
def test_programs_count_an_arrangement(d, n):
    net = random_net(d, d, (n,))
    assert decompose_space(net).n_activation_regions == arrangement_regions(d, n)


def test_the_plane_of_a_line_is_the_line():
    """Regions met along a horizontal line, two ways."""
    net = random_net(3, 2, (10, 10))
    along = decompose_line(net, Slice(np.array([0.0, 0.3]), np.array([[1.0, 0.0]])))
    middles = along.cells.interior()[:, 0]
    inside = np.abs(middles) < 1
    plane = decompose_plane(net, low=(-40.0, -40.0), high=(40.0, 40.0))
    touched = set()
    for polygon in range(plane.cells.n_cells):
        batch = plane.cells.batch
        y = batch.vertices[polygon, : batch.count[polygon], 1]
        if y.min() < 0.3 < y.max():
            touched.add(polygon)
    crossing = [
        i
        for i in range(along.cells.n_cells)
        if along.cells.high[i] > -40 and along.cells.low[i] < 40
    ]
    assert len(touched) == len(crossing)
    assert inside.any()


# Activation regions are not linear regions --------------------------------------------


def test_units_that_nothing_reads_divide_activation_regions_only():
    weight, bias = Draws(0).normal(6, 2), 0.2 * Draws(1).normal(6)
    read = np.array([[1.0, -1.0, 1.0, 0.0, 0.0, 0.0]])
    net = dense_net([(weight, bias)], (read, np.zeros(1)))
    only = dense_net([(weight[:3], bias[:3])], (read[:, :3], np.zeros(1)))
    found, smaller = (
        decompose_plane(n, low=(-5, -5), high=(5, 5)) for n in (net, only)
    )
    assert found.n_activation_regions == 22  # 6 lines in general position
    assert smaller.n_activation_regions == found.n_linear_regions == 7
    assert decompose_space(net).n_linear_regions == 7


def test_units_that_cancel_leave_one_linear_region():
    x = Input((2,))
    hidden = relu(affine(x, [[1.0, 1.0], [-1.0, -1.0]], [0.3, -0.3]))
    net = Net(x, affine(hidden, [[1.0, -1.0]]))  # relu(z) - relu(-z) = z
    for found in (decompose_plane(net), decompose_space(net)):
        assert found.n_activation_regions == 2
        assert found.n_linear_regions == 1


def test_equal_maps_far_apart_are_different_regions():
    net = folding_net(1, 2, 3)  # slopes alternate: every second piece has equal slope
    found = decompose_line(net, exact=True)
    assert len({row[0, 1] for row in found.rows}) < found.n_linear_regions == 10
    # A tent: zero on both outer parts, which are two regions.
    x = Input((1,))
    bump = relu(affine(x, [[1.0], [1.0], [1.0]], [0.0, -1.0, -2.0]))
    net = Net(x, affine(bump, [[1.0, -2.0, 1.0]]))
    assert decompose_line(net, exact=True).n_linear_regions == 4


def test_rational_max_pools_and_leaky_units():
    """Exact arithmetic through every kind of step, against floats."""
    draw = Draws(9)
    x = Input((1,))
    leaky = Activation("leaky", LEAKY, jnp.asarray, LEAKY)
    hidden = pointwise(affine(x, draw.normal(9, 1), draw.normal(9)), leaky)
    windows = tuple(np.arange(i, i + 3) for i in range(0, 9, 3))
    net = Net(x, affine(MaxPool((hidden,), (3,), windows), draw.normal(1, 3)))
    found, exact = decompose_line(net), decompose_line(net, exact=True)
    assert found.n_linear_regions == exact.n_linear_regions > 3
    np.testing.assert_array_equal(found.pattern, exact.pattern)
    middles = exact.cells.interior()
    values = exact.values(middles).astype(float)
    np.testing.assert_allclose(values, net(middles.astype(float)), atol=1e-12)


# Max pools, leaky units, merges -------------------------------------------------------


def pooled_net(seed, units=12, window=3):
    draw = Draws(seed)
    x = Input((2,))
    hidden = affine(x, draw.normal(units, 2), draw.normal(units))
    windows = tuple(np.arange(i, i + window) for i in range(0, units - window + 1, 2))
    pool = MaxPool((hidden,), (len(windows),), windows)
    return Net(x, affine(pool, draw.normal(1, len(windows))))


@pytest.mark.parametrize("window", [2, 3, 5])
def test_max_pools_are_divided_by_their_winner(window):
    net = pooled_net(window, window=window)
    found = decompose_plane(net, low=(-2, -2), high=(2, 2))
    assert abs(found.cells.areas().sum() - 16.0) < 1e-9
    check_plane(net, found)
    assert found.pattern.max() < window
    by_lp = decompose_space(net, bound=2.0)
    assert by_lp.n_activation_regions == found.n_activation_regions
    assert by_lp.n_linear_regions == found.n_linear_regions


def test_a_pool_has_the_linear_regions_of_its_relu_form():
    from layerwise.expressivity.compile import compile_net

    net = pooled_net(8)
    found = decompose_plane(net, low=(-2, -2), high=(2, 2))
    relus = decompose_plane(compile_net(net), low=(-2, -2), high=(2, 2))
    assert found.n_linear_regions == relus.n_linear_regions
    # Losers' ties divide activation regions of the tournament, not linear regions.
    assert found.n_activation_regions < relus.n_activation_regions


def test_a_pool_after_relus_does_not_mind_ties_at_zero():
    draw = Draws(2)
    x = Input((2,))
    hidden = relu(affine(x, draw.normal(9, 2), draw.normal(9)))
    net = Net(x, MaxPool((hidden,), (1,), (np.arange(9),)))
    found = decompose_plane(net, low=(-3, -3), high=(3, 3))
    assert abs(found.cells.areas().sum() - 36.0) < 1e-9
    check_plane(net, found)


def test_merges_in_the_graph():
    draw = Draws(4)
    x = Input((2,))
    f, g = (relu(affine(x, draw.normal(5, 2), draw.normal(5))) for _ in range(2))
    parts = [join(kind, f, g) for kind in ("add", "subtract", "mean", "max")]
    net = Net(x, concat(*parts))
    found = decompose_plane(net)
    assert abs(found.cells.areas().sum() - 4.0) < 1e-9
    check_plane(net, found)


# Wrong input --------------------------------------------------------------------------


def test_a_smooth_activation_has_no_linear_regions():
    x = Input((2,))
    net = Net(x, pointwise(affine(x, np.eye(2)), EXP))
    for decompose in (decompose_plane, decompose_space):
        with pytest.raises(
            UnsupportedModelError, match="'exp' is not piecewise linear"
        ):
            decompose(net)


def test_a_plane_needs_three_distinct_points_off_a_line():
    a, b = np.zeros(4), np.arange(4.0)
    with pytest.raises(InputError, match=r"2 of them\s+distinct"):
        Slice.through(a, b, a)
    with pytest.raises(InputError, match="lie on one line"):
        Slice.through(a, b, 2 * b)
    with pytest.raises(InputError, match=r"1 of them\s+distinct"):
        Slice.through(a, a)
    with pytest.raises(InputError, match="3 points of 4 entries"):
        decompose_plane(random_net(0, 4, (3,)))


def test_slices_keep_lengths():
    plane = Slice.through(*Draws(0).normal(3, 9))
    points = Draws(1).normal(20, 2)
    embedded = plane.embed(points)
    np.testing.assert_allclose(plane.coordinates(embedded), points, atol=1e-12)
    lengths = np.linalg.norm(embedded[1:] - embedded[:-1], axis=1)
    np.testing.assert_allclose(
        lengths, np.linalg.norm(points[1:] - points[:-1], axis=1)
    )


def test_areas_of_both_sides_of_a_cut_add_up():
    cells = Polygons.box(np.array([-1.0, 0.0]), np.array([2.0, 5.0]))
    key = jax.random.key(0)
    for i in range(12):
        row = np.asarray(
            jax.random.normal(jax.random.fold_in(key, i), (3,)), np.float64
        )
        rows = np.stack([np.zeros(3), row])[None].repeat(cells.n_cells, 0)
        cells, owner, winner = cells.partition(rows)
        assert set(winner) <= {0, 1}
        assert owner.shape == winner.shape == (cells.n_cells,)
    assert abs(cells.areas().sum() - 15.0) < 1e-12
    assert len(cells.adjacency()) >= cells.n_cells - 1
