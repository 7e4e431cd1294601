"""H: signal variances of convolution networks [Henmi2020]."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import layerwise as lw
from experiments.claims import trained
from experiments.claims.ledger import Outcome, claim, judge, pm, within, worst
from experiments.photos import photo_crops
from layerwise.initializers import asv, variance_scaling
from layerwise.moments.pooling import relu_average, relu_max
from layerwise.theory.recursion import iterate
from layerwise.tracing import TracedModel, chain, trace
from layerwise.tracing.connections import Axis
from layerwise.tracing.prepare import prepare


def _traced(model) -> TracedModel:
    ready = prepare(model, None, None)
    return trace(ready.model, ready.example, ready.inputs)


@functools.cache
def _f34(size: int = 224) -> TracedModel:
    return _traced(lw.zoo.f34(image_size=size))


def _white(size: int, batch: int = 1) -> np.ndarray:
    """Inputs whose every entry has square 1, as the papers' q_0 = 1 has it."""
    signs = jax.random.rademacher(jax.random.key(3), (batch, size, size, 3))
    return np.asarray(signs, np.float32)


@functools.cache
def _simulated(size: int, scheme: str, draws: int) -> lw.Measurement:
    model = lw.zoo.f34(image_size=size)
    law = lw.scheme_law(model, _white(size), scheme)
    return lw.measure(model, None, _white(size), redraw=law, draws=draws)


@functools.cache
def _exact(size: int, scheme: str) -> lw.Prediction:
    model = lw.zoo.f34(image_size=size)
    return lw.predict(model, scheme, _white(size), method="sitewise")


def _paper(size: int, scheme: str):
    model = _f34(size)
    rule = asv if scheme in asv.RULES else variance_scaling
    return iterate(chain(model), list(rule.variances(model, scheme).values()))


@claim("H1", "A layer in index sets, eq. (1a) to (2b), is a convolution, adjoint too.")
def index_sets() -> Outcome:
    keys, error = iter(jax.random.split(jax.random.key(0), 15)), 0.0

    def normal(*shape):
        return np.asarray(jax.random.normal(next(keys), shape), np.float64)

    for size, taps, stride, pad, dilation in (
        (9, 3, 1, 1, 1),
        (11, 3, 2, 1, 1),
        (12, 7, 2, 3, 1),
        (10, 3, 1, 2, 2),
        (8, 2, 2, 0, 1),
    ):
        x, w = normal(size, 4), normal(taps, 4, 5)
        axis = Axis(size, taps, stride, (pad, pad), dilation)

        def layer(x, w=w, s=stride, p=pad, d=dilation):
            kernel = jnp.asarray(w)[:, None]
            options = {
                "rhs_dilation": (d, 1),
                "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
            }
            padding = ((p, p), (0, 0))
            return jax.lax.conv_general_dilated(
                x[None, :, None], kernel, (s, 1), padding, **options
            )[0, :, 0]

        sources = axis.sources
        forward = np.zeros((axis.n_outputs, 5))
        g = normal(*forward.shape)
        backward = np.zeros_like(x)
        for i, j in zip(*np.nonzero(sources >= 0), strict=True):
            forward[i] += x[sources[i, j]] @ w[j]
            backward[sources[i, j]] += w[j] @ g[i]
        out, pull = jax.vjp(layer, jnp.asarray(x, jnp.float32))
        error = max(error, worst(np.asarray(out), forward))
        error = max(
            error, worst(np.asarray(pull(jnp.asarray(g, jnp.float32))[0]), backward)
        )
    return Outcome(
        judge(error < 1e-5), "equal", f"error {error:.0e} in float32, five geometries"
    )


@claim("H2", "The number of connections of a layer, padding left out.")
def connections() -> Outcome:
    layers = _f34().layers
    by_axis = [3 * n - 2 for n in (56, 28, 14, 7)]
    rows = {1: 778**2 * 3 * 64, 2: by_axis[0] ** 2 * 64**2, 9: by_axis[1] ** 2 * 128**2}
    rows |= {17: by_axis[2] ** 2 * 256**2, 29: by_axis[3] ** 2 * 512**2, 34: 512 * 10}
    got = {i: layers[i - 1].connections.total for i in rows}
    share = [
        y.connections.total / (y.connections.n_out * y.connections.fan_in)
        for y in layers
    ]
    return Outcome(
        judge(got == rows),
        "eps = sum of |s(l, i)|; (3n - 2) an axis for 3x3 kernels",
        f"all equal; eps / (M' fan-in) falls from {share[0]:.3f} to {min(share):.3f}",
    )


@claim("H3", "Table 1: what ReLU and pooling do to second moments.")
def table_1() -> Outcome:
    key, gaps, worst_gap = jax.random.key(5), [], 0.0
    for size in (1, 2, 4, 9, 16, 49):
        z = np.asarray(jax.random.normal(key, (200, 2000, size)), np.float64)
        v = np.maximum(z, 0)
        top = v.max(-1)
        samples = {
            relu_max(size).tau: np.square(top).mean(1),
            relu_max(size).gamma: (top > 0).mean(1) / size,
            relu_average(size).tau: np.square(v.mean(-1)).mean(1),
            relu_average(size).gamma: (z > 0).mean((1, 2)) / size**2,
        }
        for exact, got in samples.items():
            gaps.append(within(got, exact, 5))
            worst_gap = max(worst_gap, abs(got.mean() / exact - 1))
    return Outcome(
        judge(all(gaps)),
        "tau_max(9) = 2.5626, gamma_max(9) = .11089, tau_avg(49) = .16611",
        f"tau_max(9) = {relu_max(9).tau:.6f}, gamma_max(9) = {relu_max(9).gamma:.6f}, "
        f"tau_avg(49) = {relu_average(49).tau:.6f}",
        f"24 constants within 5 standard errors, {worst_gap:.1%} at most",
        "For independent entries and windows that do not overlap.",
    )


@claim("H4", "Eq. (6), (7) keep q or r at 1; without pooling and padding: He's.")
def initializers() -> Outcome:
    forward, backward = _paper(224, "asv_forward"), _paper(224, "asv_backward")
    flat = worst(np.asarray(forward.q), np.ones(34))
    back = worst(np.asarray(backward.r), np.ones(35))
    plain = _traced(lw.zoo.mlp(widths=(64, 64, 64)))
    ours = list(asv.variances(plain, "asv_forward").values())[1:]
    he = list(variance_scaling.variances(plain, "kaiming_fan_in").values())[1:]
    same = worst(np.asarray(ours), np.asarray(he))
    return Outcome(
        judge(max(flat, back, same) < 1e-12),
        "q_l = 1, or r_l = 1; eq. (6) itself is missing in print",
        f"1 to {max(flat, back):.0e} in eq. (4), (5); He's to {same:.0e}",
        statement="Var[w] = M' / (tau eps) forward, with tau_0 = 1, and "
        "M / (gamma eps) backward.",
    )


@claim("H5", "Eq. (4), (5) predict the second moments of F34 at 224 px.", slow=True)
def recursion() -> Outcome:
    paper = _paper(224, "kaiming_fan_in")
    measured = _simulated(224, "kaiming_fan_in", 40)
    exact = _exact(224, "kaiming_fan_in")
    q, r = measured.curve("forward")[:, 34], measured.curve("backward")[:, 0]
    fits = within(q, paper.q[33], 3) and within(r, paper.r[0], 3)
    sound = within(q, exact.curve("forward")[34], 3)
    sound &= within(r, exact.curve("backward")[0], 3)
    return Outcome(
        judge(fits, sound),
        f"q_34 = {paper.q[33]:.4g}, r_0 = {paper.r[0]:.4g}",
        f"q_34 = {exact.curve('forward')[34]:.4g}, "
        f"r_0 = {exact.curve('backward')[0]:.4g}",
        f"q_34 = {pm(q)}, r_0 = {pm(r)}",
        "Only with one number per position: what a border loses does not compound "
        "like its average.",
    )


@claim("H6", "F34 has 34 weight layers and 2.11e7 parameters.")
def f34_size() -> Outcome:
    found = lw.describe(lw.zoo.f34())
    return Outcome(
        judge(len(found.layers) == 34 and round(found.parameters / 1e5) == 211),
        "34 layers, 2.11e7",
        f"{len(found.layers)} layers, {found.parameters:,} with all biases",
    )


@claim("H7", "F50 is ResNet-50's layers without shortcuts and normalization.")
def f50_size() -> Outcome:
    found = lw.describe(lw.zoo.f50())
    q = _traced(lw.zoo.f50())
    he = list(variance_scaling.variances(q, "kaiming_fan_in").values())
    return Outcome(
        judge(len(found.layers) == 50 and found.connections == "neither"),
        "50 layers",
        f"{len(found.layers)} layers, {found.parameters:,} parameters, {found.paths} "
        f"path; eq. (4) under He: q_50 = {iterate(chain(q), he).q[-1]:.4f}",
    )


@claim("H8", "Simulation agrees with exact theory at every layer of F34.", slow=True)
def simulation() -> Outcome:
    measured = _simulated(224, "kaiming_fan_in", 40)
    exact, paper = _exact(224, "kaiming_fan_in"), _paper(224, "kaiming_fan_in")
    gaps = {"exact": [], "paper": []}
    for direction, printed in (("forward", paper.q), ("backward", paper.r)):
        samples = measured.curve(direction)
        predicted = exact.curve(direction)
        for layer in range(1, 34):
            x = samples[:, layer]
            error = x.std(ddof=1) / np.sqrt(len(x))
            at = printed[layer - 1] if direction == "forward" else printed[layer]
            gaps["exact"].append(abs(x.mean() - predicted[layer]) / error)
            gaps["paper"].append(abs(x.mean() - at) / error)
    exact_gap, paper_gap = max(gaps["exact"]), max(gaps["paper"])
    return Outcome(
        judge(paper_gap < 5, exact_gap < 5),
        f"eq. (4), (5): up to {paper_gap:.0f} standard errors away",
        f"the site-resolved table: at most {exact_gap:.1f}",
        "40 networks, layers 1 to 33, both directions",
        "For the site-resolved second moments, not for layer averages.",
    )


@claim("H9", "Table 1's gamma holds for F34's overlapping max pooling.")
def overlap() -> Outcome:
    n, draws = 112, 40
    axis = Axis(n, 3, 2, (1, 1))
    per_axis = (axis.sources >= 0).sum(1)
    windows = np.multiply.outer(per_axis, per_axis)
    exact = float((1 - 0.5**windows).sum() / n**2)

    def gamma(key):
        u, g = jax.random.normal(key, (2, n, n))
        g = g[: axis.n_outputs, : axis.n_outputs]

        def pool(u):
            v = jax.nn.relu(u)[None, :, :, None]
            return nn.max_pool(v, (3, 3), (2, 2), ((1, 1), (1, 1)))[0, :, :, 0]

        _, pull = jax.vjp(pool, u)
        return jnp.square(pull(g)[0]).mean()

    samples = np.asarray(jax.lax.map(gamma, jax.random.split(jax.random.key(7), draws)))
    printed = relu_max(9).gamma
    return Outcome(
        judge(within(samples, printed, 3), within(samples, exact, 3)),
        f"gamma = {printed:.5f}",
        f"{exact:.5f}, {exact / printed:.3f} times as much",
        pm(samples),
        "gamma = sum over windows of (1 - 2^-T) / number of inputs, for any geometry.",
    )


@claim("H10", "Table 1's tau for global average pooling at the end of F34.", slow=True)
def global_average() -> Outcome:
    measured = _simulated(224, "kaiming_fan_in", 40)
    second = measured.second_moment("forward")[measured.ensemble]
    before = second[:, measured.find("u", 33)]
    after = second[:, measured.find("z", 33)]
    tau = after.mean() / before.mean()
    error = (after - tau * before).std(ddof=1) / before.mean() / np.sqrt(len(after))
    exact = _exact(224, "kaiming_fan_in")
    log = exact.log_second["forward"]
    theory = np.exp(log[exact.find("z", 33)] - log[exact.find("u", 33)])
    printed = relu_average(49).tau
    return Outcome(
        judge(abs(tau - printed) < 3 * error, abs(tau - theory) < 3 * error + 0.01),
        f"tau = {printed:.4f}",
        f"{theory:.4f} with the correlations of positions",
        f"{tau:.4f} ± {error:.1g}",
        "Positions of deep features are correlated; tau is for independent ones.",
    )


@claim("H11", "Table 1's tau for max pooling holds on images.")
def images() -> Outcome:
    model = lw.zoo.f34(image_size=96)
    x = photo_crops(4, 96)
    law = lw.scheme_law(model, x, "kaiming_fan_in")
    measured = lw.measure(model, None, x, redraw=law, draws=24)
    second = measured.second_moment("forward")[measured.ensemble]
    ratio = second[:, measured.find("z", 1)] / second[:, measured.find("u", 1)]
    printed = relu_max(9).tau
    return Outcome(
        judge(within(ratio, printed, 5)),
        f"tau = {printed:.4f}",
        "",
        f"{pm(ratio)} on photos",
        "Neighbouring pixels are alike, so that the maximum gains less.",
    )


@claim("H12", "Scales that keep q at 1 exist for the exact, site-resolved map.")
def position_resolved() -> Outcome:
    model = lw.zoo.f34(image_size=64)
    x = _white(64)
    curve = lw.predict(model, "asv_forward", x, method="sitewise").curve("forward")[1:]
    ours = lw.predict(model, "position_resolved_forward", x, method="sitewise").curve(
        "forward"
    )[1:]
    return Outcome(
        judge(abs(curve - 1).max() < 0.01, abs(ours - 1).max() < 0.01),
        "eq. (6): q_l = 1",
        f"eq. (6): up to {curve.max():.3g}; resolved: {ours.min():.4f} to "
        f"{ours.max():.4f}",
        statement="With the border's map in place of its average.",
    )


@claim("H13", "At small maps only the paper's scheme trains F34.", slow=True)
def training() -> Outcome:
    errors = trained.f34_errors(("glorot", "kaiming_fan_in", "asv_forward"))
    chance = 1 - max(np.bincount(trained.images(32).y_test)) / len(
        trained.images(32).y_test
    )
    stuck = all(errors[s] > 0.7 for s in ("glorot", "kaiming_fan_in"))
    return Outcome(
        judge(stuck and errors["asv_forward"] < 0.3),
        "24.61 % accuracy under Glorot is the largest class: nothing was learned",
        f"the largest class alone: error {chance:.3f}",
        ", ".join(f"{scheme} {error:.3f}" for scheme, error in errors.items()),
        "Test error on digits, 32 px, a quarter of the width, 600 steps, one seed. At "
        "224 px the published gain is 5 of 512 images.",
    )


@claim("H14", "Larger windows raise tau_max, lower gamma_max, tau_avg and gamma_avg.")
def monotone() -> Outcome:
    sizes = range(1, 65)
    tops, means = [relu_max(t) for t in sizes], [relu_average(t) for t in sizes]
    signs = [
        np.all(np.diff([p.tau for p in tops]) > 0),
        np.all(np.diff([p.gamma for p in tops]) < 0),
        np.all(np.diff([p.tau for p in means]) < 0),
        np.all(np.diff([p.gamma for p in means]) < 0),
    ]
    return Outcome(
        judge(all(signs)), "monotone", f"{sum(map(bool, signs))} of 4, T = 1 to 64"
    )


@claim("H15", "Table 2: Glorot, He and the paper's scheme, and what each takes in.")
def table_2() -> Outcome:
    model = _f34()
    rules = {}
    for name in ("glorot", "kaiming_fan_in", "asv_forward"):
        rule = asv if name in asv.RULES else variance_scaling
        rules[name] = np.array(list(rule.variances(model, name).values()))
    fan = np.array([y.connections.fan_in for y in model.layers])
    blind = np.ptp(rules["kaiming_fan_in"] * fan) < 1e-12
    sees = np.unique(np.round(rules["asv_forward"] * fan, 6))
    return Outcome(
        judge(bool(blind) and len(sees) > 5),
        "pooling and padding only in the paper's",
        f"He's Var[w] fan-in is one number; eq. (6)'s takes {len(sees)} values in F34",
    )
