"""T: depth, residual networks and batch normalization [Taki2017]."""

import itertools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np

import layerwise as lw
from experiments.claims import trained
from experiments.claims.ledger import Outcome, claim, judge, mean_sem, pm, within, worst
from experiments.streams import normal_weight, normalize_batch, streams
from layerwise.expressivity import decompose_line, decompose_plane, folding, memorize
from layerwise.expressivity.memorization import memorize_deep
from layerwise.theory import residual as laws


DEPTH, WIDTH = 100, 128


def _identity(x):
    return x


def _streams(block, depth, draws, *, width=WIDTH, batch=4, seed=0):
    """Returns E[z_L^2] and E[(dE/dz_0)^2] per network."""
    q, r = streams(block, depth, draws, width=width, batch=batch, seed=seed)
    return q[:, -1], r[:, 0]


def _weight(key, s, width=WIDTH):
    return normal_weight(key, s, width)


@claim("T1", "A folding net has as many linear regions as the bound counts.")
def regions() -> Outcome:
    counts, bounds = {}, {}
    for pieces, folds in ((2, 1), (2, 2), (3, 1), (3, 2)):
        net = folding.folding_net(
            2,
            pieces,
            folds,
            last=folding.general_lines(2 * pieces),
            readout=np.ones((1, 2 * pieces)),
        )
        cells = decompose_plane(net, low=(0, 0), high=(pieces / 2, pieces / 2))
        counts[pieces, folds] = cells.n_linear_regions
        widths = (2 * pieces,) * folds + (2 * pieces,)
        bounds[pieces, folds] = folding.montufar_lower_bound(2, widths)
    return Outcome(
        judge(counts == bounds),
        "(prod floor(n/n0)^n0) sum C(n, j): " + ", ".join(map(str, bounds.values())),
        ", ".join(map(str, counts.values())) + " counted",
    )


@claim("T2", "Hinges z_j = max(0, jx - j) fold the line p times.")
def coincident() -> Outcome:
    printed = [
        decompose_line(folding.coincident_net(p)).n_linear_regions for p in (2, 3, 5)
    ]
    correct = [
        decompose_line(folding.folding_net(1, p, 1), exact=True).n_linear_regions - 1
        for p in (2, 3, 5)
    ]
    return Outcome(
        judge(printed == [2, 3, 5], correct == [2, 3, 5]),
        "p pieces",
        f"{printed} pieces as printed, {correct} with max(0, 2x - (j - 1))",
        statement="All printed hinges lie at x = 1: h_j = max(0, 2x - (j - 1)).",
    )


@claim("T3", "The backward recursion of the slides is the gradient.")
def backpropagation() -> Outcome:
    key = jax.random.key(0)
    weights = [0.3 * jax.random.normal(k, (8, 8)) for k in jax.random.split(key, 5)]
    x, y = jax.random.normal(key, (2, 8))

    def loss(weights):
        z = x
        for w in weights:
            z = jnp.tanh(w @ z)
        return 0.5 * jnp.square(z - y).sum()

    z, us = [x], []
    for w in weights:
        us.append(w @ z[-1])
        z.append(jnp.tanh(us[-1]))
    delta = (z[-1] - y) * (1 - jnp.tanh(us[-1]) ** 2)
    slides = [jnp.outer(delta, z[-2])]
    for i in range(len(weights) - 2, -1, -1):
        delta = (weights[i + 1].T @ delta) * (1 - jnp.tanh(us[i]) ** 2)
        slides.insert(0, jnp.outer(delta, z[i]))
    error = max(
        worst(np.asarray(a), np.asarray(b, np.float64))
        for a, b in zip(jax.grad(loss)(weights), slides, strict=True)
    )
    return Outcome(
        judge(error < 1e-6), "delta^l = f'(u) W^T delta", f"error {error:.0e}"
    )


@claim("T4", "In a plain ReLU net of Var[w] = b/n, gradients grow as b^L.")
def plain() -> Outcome:
    samples, exact = {}, {}
    for b in (1.0, 2.0, 3.0):
        _, r = _streams(
            lambda k, z, b=b: jax.nn.relu(z @ _weight(k, b)), 20, 400, seed=int(b)
        )
        samples[b], exact[b] = r, laws.plain_growth(b, 20, jax.nn.relu)
    printed = all(within(samples[b], b**20, 5) for b in samples)
    corrected = all(within(samples[b], exact[b], 5) for b in samples)
    return Outcome(
        judge(printed, corrected),
        "b^20 = " + ", ".join(f"{b**20:.3g}" for b in samples),
        "(b/2)^20 = " + ", ".join(f"{v:.3g}" for v in exact.values()),
        ", ".join(pm(r) for r in samples.values()) + " for b = 1, 2, 3",
        "With ReLU the factor is b/2 a layer; b is in units of He's scale.",
    )


@claim("T5", "In a residual net gradients grow as (1 + a n Var[w])^L, a = 1/2.")
def residual_law() -> Outcome:
    c = 2.0
    s = c / DEPTH
    _, r = laws.weight_then_add(s, DEPTH, jax.nn.relu)
    _, last = _streams(lambda k, z: z + jax.nn.relu(z) @ _weight(k, s), DEPTH, 200)
    grown, first = _streams(
        lambda k, z: z + jax.nn.relu(z @ _weight(k, s)), DEPTH, 60, seed=1
    )
    wide, _ = laws.activate_then_add(s, DEPTH, jax.nn.relu)
    both = within(last, r[0], 5) and within(first, r[0], 5)
    return Outcome(
        judge(both, within(last, r[0], 5)),
        f"(1 + c/2L)^L = {(1 + s / 2) ** DEPTH:.3f} for c = 2, L = 100",
        f"{r[0]:.3f} for z + W f(z); q_L = {wide[-1]:.3g} for z + f(W z)",
        f"z + W f(z): {pm(last)}; z + f(W z): {pm(first)}, q_L = {pm(grown)}",
        "For z + W f(z) only: behind an activation the means add up.",
    )


@claim("T6", "Var[w] = c/(nL) makes the growth e^{ac}, whatever the depth.")
def depth_free() -> Outcome:
    rows, held = [], []
    for depth in (10, 100, 1000):
        s = 1.0 / depth
        _, r = _streams(
            lambda k, z, s=s: z + jax.nn.relu(z) @ _weight(k, s), depth, 100, seed=depth
        )
        law = laws.weight_then_add(s, depth, jax.nn.relu)[1][0]
        rows.append(f"{law:.3f} ({pm(r)})")
        held.append(abs(law / np.exp(0.5) - 1) < 0.05 and within(r, law, 5))
    return Outcome(
        judge(all(held)),
        f"e^(c/2) = {np.exp(0.5):.3f} for c = 1",
        "",
        "L = 10, 100, 1000: " + ", ".join(rows),
        "For c of order 1: at c = 10 and L = 100 (1 + c/2L)^L is "
        f"{1 - (1.05**100) / np.exp(5):.0%} below e^(c/2).",
    )


@claim("T7", "With batch normalization Var[dE/dw^l] = (L/l) Var[delta].", slow=True)
def batch_norm_law() -> Outcome:
    depth, layer, batch, width = 100, 1, 512, 64

    ratios = {}
    for name, phi in (("identity", _identity), ("ReLU", jax.nn.relu)):
        law = laws.batch_norm(depth, phi, s=2.0, q_0=1.0).ratio[0]
        _, r = _streams(
            lambda k, z, phi=phi: z + phi(normalize_batch(z)) @ _weight(k, 2.0, width),
            depth,
            24,
            width=width,
            batch=batch,
        )
        ratios[name] = (law, r)
    slide = laws.batch_norm(depth, _identity, s=2.0, q_0=1.0).ratio[0]
    law, r = ratios["ReLU"]
    linear = abs(ratios["identity"][1].mean() / slide - 1) < 0.05
    holds = abs(r.mean() / slide - 1) < 0.05
    corrected = abs(r.mean() / law - 1) < 0.05
    exponent = laws.batch_norm(depth, jax.nn.relu).exponent
    return Outcome(
        judge(holds and linear, corrected and linear),
        f"{slide:.4g} from layer {layer - 1} to {depth}",
        f"{law:.4g} for ReLU: (L/l)^{exponent:.4f}",
        f"identity {pm(ratios['identity'][1])}, ReLU {pm(r)}",
        "Exponent E[f'^2]/Var[f]: 1 for linear residuals, pi/(pi - 1) for ReLU.",
    )


@claim(
    "T8",
    "100 blocks: He without normalization diverges, c/(nL) and BN train.",
    slow=True,
)
def hundred_blocks() -> Outcome:
    table = trained.hundred_blocks()
    diverges = all(not np.isfinite(x) or x > 2.3 for x in table["he"].values())
    trains = {
        k: np.nanmin(list(v.values())) < 0.5 for k, v in table.items() if k != "he"
    }
    return Outcome(
        judge(diverges and all(trains.values())),
        "He unstable; c/(nL) and BN stable",
        "",
        "; ".join(
            f"{name}: "
            + ", ".join(f"{loss:.2g} at lr {lr:g}" for lr, loss in row.items())
            for name, row in table.items()
        ),
        "Training loss after 300 steps on digits, width 64.",
    )


@claim("T9", "Degradation: plain nets of 56 layers train worse than of 20.", slow=True)
def degradation() -> Outcome:
    table = trained.degradation()
    plain_20, plain_56 = table["plain"]
    residual_56 = table["residual"][1]
    worse = all(b > a for a, b in zip(plain_20, plain_56, strict=True))
    better = np.mean(residual_56) < np.mean(plain_56)
    return Outcome(
        judge(worse and bool(better)),
        "the ordering, in training error",
        "",
        f"plain-20 {np.mean(plain_20):.3f}, plain-56 {np.mean(plain_56):.3f}, "
        f"ResNet-56 {np.mean(residual_56):.3f} (training loss, 3 seeds)",
    )


PUBLISHED = {
    "resnext50_32x4d": 25_028_904,
    "se_resnet50": 28_088_024,
    "pyramidnet": 1_772_706,
    "stochastic_depth_resnet": 1_727_962,
}


@claim("T10", "The variants of the slides have the sizes that are published for them.")
def variants() -> Outcome:
    got = {n: lw.describe(lw.zoo.entry(n).build()).parameters for n in PUBLISHED}
    survival = 1 - np.arange(1, 55) / 54 * 0.5
    ror = lw.describe(lw.zoo.entry("ror3").build()).parameters
    return Outcome(
        judge(got == PUBLISHED and abs(survival.sum() - 40.25) < 1e-9),
        "ResNeXt-50, SE-ResNet-50, PyramidNet-110, stochastic depth 110: "
        + ", ".join(f"{v:,}" for v in PUBLISHED.values()),
        f"{sum(got[k] == v for k, v in PUBLISHED.items())} of 4 equal; expected depth "
        f"{survival.sum():g} of 54; RoR-3-110 {ror:,} (its shortcuts are ambiguous)",
    )


@claim("T11", "Residual blocks are unbiased estimators: E[F(x)] = 0.")
def unbiased() -> Outcome:
    def shift(order):
        def one(key):
            k, z = jax.random.split(key)
            z = jax.nn.relu(jax.random.normal(z, (16, WIDTH)))
            w = _weight(k, 2.0)
            f = jax.nn.relu(z @ w) if order == "f W" else z @ w
            return f.mean() / jnp.sqrt(jnp.square(f).mean())

        keys = jax.random.split(jax.random.key(3), 200)
        return np.asarray(jax.lax.map(one, keys), np.float64)

    weight_last, activation_last = shift("W f"), shift("f W")
    return Outcome(
        judge(within(activation_last, 0.0, 5), within(weight_last, 0.0, 5)),
        "E[F] = 0",
        "0 for W f(z); (2 pi)^-1/2 / 2^-1/2 = 0.564 for f(W z), ReLU",
        f"mean over root mean square: W f {pm(weight_last)}, f W {pm(activation_last)}",
        "At initialization for blocks that end in a weight; the citation is Greff et "
        "al. (2017).",
    )


@claim("T12", "Shuffling blocks hurts a residual net little.", slow=True)
def shuffling() -> Outcome:
    base, swapped = trained.shuffle_errors()
    gentle = np.median(swapped) < 0.45
    return Outcome(
        judge(bool(gentle)),
        "error rises smoothly with the number of swaps",
        "",
        f"error {base:.3f}; one pair swapped: median {np.median(swapped):.3f}, "
        f"worst {max(swapped):.3f}",
        "Digits, ResNet-20, blocks of equal shape.",
    )


@claim("T13", "Networks memorize random labels with 2n + d weights.")
def memorization() -> Outcome:
    key = jax.random.key(0)
    x = np.asarray(jax.random.normal(key, (1000, 784)), np.float64)
    y = np.asarray(jax.random.randint(key, (1000,), 0, 10), np.float64)
    shallow = memorize(x, y, jax.random.key(0))
    error = float(np.abs(shallow(x) - y).max())
    widths = {}
    for hidden in (1, 2, 5, 10, 20):
        net = memorize_deep(x[:400, :20], y[:400], jax.random.key(0), n_hidden=hidden)
        widths[hidden] = (net.width, net.n_weights)
        error = max(error, float(np.abs(net(x[:400, :20]) - y[:400]).max()))
    linear = all(w <= 3 * 399 + 20 + 2 * k + 1 for k, (_, w) in widths.items())
    return Outcome(
        judge(shallow.n_weights <= 2 * 1000 + 784 and error < 1e-6 and linear),
        "2n + d weights, one hidden layer; width O(n/k) at depth k",
        f"{shallow.n_weights} of {2 * 1000 + 784} weights, error {error:.0e}; n = 400: "
        "width " + ", ".join(f"{w} (L = {k})" for k, (w, _) in widths.items()),
    )


@claim("T14", "Top-5 errors of ILSVRC winners: 16, 11, 6.6, 3.57, 2.99, 2.25 %.")
def challenge() -> Outcome:
    values = [Fraction("16.4"), Fraction("11.7"), Fraction("6.67")]
    values += [Fraction("3.57"), Fraction("2.99"), Fraction("2.251")]
    falls = all(b < a for a, b in itertools.pairwise(values))
    return Outcome(
        "not run",
        "16, 11, 6.6, 3.57, 2.99, 2.25",
        f"published: {', '.join(f'{float(v):g}' for v in values)} "
        f"({'falling' if falls else 'not falling'})",
        "",
        "ImageNet cannot be had without its licence; GoogLeNet's is 6.67.",
    )


@claim("T15", "Wide nets end at like losses (the spin-glass slide).", slow=True)
def loss_spread() -> Outcome:
    narrow, wide = trained.final_losses(widths=(4, 64))
    spread = [float(np.std(x) / np.mean(x)) for x in (narrow, wide)]
    return Outcome(
        judge(spread[1] < spread[0]),
        "the spread of final losses falls with width",
        "",
        f"std / mean over seeds: {spread[0]:.2f} at width 4, {spread[1]:.2f} at width "
        f"64 (losses {mean_sem(narrow)[0]:.3g}, {mean_sem(wide)[0]:.3g})",
    )
