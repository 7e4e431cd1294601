"""N: poolings and skips as concatenations, affine maps and ReLUs [Nagase2019]."""

import jax
import numpy as np

import layerwise as lw
from experiments.claims.ledger import Outcome, claim, judge, worst
from layerwise.expressivity import Net, compile_net, constructions, express, strictness
from layerwise.expressivity.graph import Input, Join, affine, join, relu


def _draw(seed: int):
    """Returns a source of standard normal arrays, in float64."""
    keys = iter(jax.random.split(jax.random.key(seed), 64))
    return lambda *shape: np.asarray(jax.random.normal(next(keys), shape), np.float64)


def _long_skip(seed: int, widths: tuple[int, ...], size: int = 4):
    draw, hidden, fan_in = _draw(seed), [], size
    for width in widths:
        hidden.append((draw(width, fan_in), draw(width)))
        fan_in = width
    return constructions.LongSkip(hidden, draw(2, fan_in), draw(2, size), draw(2))


@claim("N1", "Affine maps and activations compose; L counts activations (Def. 1).")
def composition() -> Outcome:
    draw = _draw(0)
    w, v, b = draw(5, 4), draw(3, 5), draw(5)
    x = Input((4,))
    net = Net(x, affine(relu(affine(x, w, b)), v))
    points = draw(100, 4)
    error = worst(net(points), np.maximum(points @ w.T + b, 0) @ v.T)
    try:
        affine(x, v)
        typed = False
    except lw.errors.InvalidArgumentError:
        typed = True
    return Outcome(
        judge(error < 1e-12 and typed and net.n_layers == 1),
        "L = 1 for affine, activation, affine",
        f"L = {net.n_layers}; composition to {error:.0e}; shapes that do not fit are "
        f"{'refused' if typed else 'accepted'}",
    )


@claim("N2", "Average pooling is one affine map of rank d/n (Theorem 1).")
def average_pooling() -> Outcome:
    windows, _ = constructions.pool_windows((24,), 4)
    net = constructions.average_pool(windows, 24)
    x = _draw(1)(100, 24)
    error = worst(net(x), x.reshape(100, 6, 4).mean(-1))
    rank = int(np.linalg.matrix_rank(net(np.eye(24))))
    return Outcome(
        judge(error < 1e-12 and rank == 6 and net.n_layers == 0),
        "0 layers, rank 24/4 = 6",
        f"{net.n_layers} layers, rank {rank}, error {error:.0e}",
    )


@claim("N3", "Max pooling over n takes log2 n layers of concatenated blocks.")
def max_pooling() -> Outcome:
    draw, error, sizes = _draw(2), 0.0, []
    for shape, window, stride, pad in (
        ((12,), 3, 3, 0),
        ((13,), 5, 2, 2),
        ((7, 7), 3, 2, 1),
        ((6, 8), 2, 2, 0),
        ((7, 7), 7, 7, 0),
    ):
        windows, _ = constructions.pool_windows(
            shape, window, strides=stride, padding=pad
        )
        size = int(np.prod(shape))
        net = compile_net(constructions.max_pool(windows, size))
        x = draw(2000, size)
        want = np.stack([x[:, w].max(axis=1) for w in windows], axis=1)
        error = max(error, worst(net(x), want))
        longest = max(len(w) for w in windows)
        sizes.append(
            net.n_layers == int(np.ceil(np.log2(longest)))
            and net.n_units == sum(len(w) - 1 for w in windows)
        )
    return Outcome(
        judge(error < 1e-10 and all(sizes)),
        "m >= log2 n layers",
        f"ceil(log2 n) layers and n - 1 ReLUs a window, any stride, overlap and "
        f"padding: error {error:.0e}",
        statement="The difference needs ReLU(x - y) + y; with the printed "
        "ReLU(x - y, 0) read as that.",
    )


@claim("N4", "Sum, difference, mean, max, product and quotient of branches (Thm 2).")
def joins() -> Outcome:
    draw, errors = _draw(3), {}
    for kind in ("add", "subtract", "mean", "max", "product", "quotient"):
        net = constructions.join_branches(kind, 6)
        x = np.abs(draw(500, 12)) + 0.1
        errors[kind] = worst(compile_net(net)(x), net(x))
    matrix = constructions.join_branches("subtract", 1)(np.array([[3.0, 2.0]]))[0, 0]
    any_sign = constructions.join_branches("product", 6)
    x = draw(500, 12)
    try:
        compile_net(any_sign)(x)
        refused = False
    except lw.errors.InputError:
        refused = True
    squares = worst(compile_net(any_sign, product="squares")(x), any_sign(x))
    exact = max(errors.values()) < 1e-12 and squares < 1e-12
    return Outcome(
        judge(exact and matrix == 3.0 / 2.0, exact and matrix == 1.0 and refused),
        "(I -I) is 'division'; products by exp and log",
        f"(I -I)(3; 2) = {matrix:g}, a difference; six joins to "
        f"{max(errors.values()):.0e}",
        statement="(I -I) is subtraction; exp(log x + log y) needs positive inputs "
        f"(products of any sign by squares: {squares:.0e}).",
    )


@claim("N5", "An affine map of a concatenation is a sum of affine maps (Prop. 1).")
def split() -> Outcome:
    draw = _draw(4)
    weight, bias, x = draw(5, 9), draw(5), draw(50, 9)
    parts = constructions.split_affine(weight, bias, [4, 5])
    summed = sum(v @ w.T + b for v, (w, b) in zip((x[:, :4], x[:, 4:]), parts))
    error = worst(np.asarray(summed), x @ weight.T + bias)
    return Outcome(judge(error < 1e-12), "equal", f"error {error:.0e}")


@claim("N6", "Sums of affine maps and concatenation express the same (Theorem 3).")
def merge() -> Outcome:
    draw = _draw(5)
    x = Input((4,))
    f = affine(relu(affine(x, draw(5, 4))), draw(3, 5), draw(3))
    g = affine(x, draw(3, 4), draw(3))
    net = Net(x, join("add", f, g))
    compiled = compile_net(net)
    points = draw(100, 4)
    error = worst(compiled(points), net(points))
    # y = B(x) + x, then one affine map a (B(x) + x) + c, cannot be relu(x): no slope a
    # gives both 0 below and 1 above.
    slopes = [(a, 2 * a) for a in np.linspace(-2, 2, 401)]
    literal = min(max(abs(low), abs(high - 1)) for low, high in slopes)
    return Outcome(
        judge(error < 1e-12 and literal < 1e-9, error < 1e-12),
        "no difference between adding and concatenating",
        f"error {error:.0e} with an affine map on each branch; x + relu(x) and one map "
        f"behind it miss relu(x) by slope {literal:.2f}",
        statement="Equal only if each branch has an affine map of its own.",
    )


@claim("N7", "Two concatenated blocks contain every long skip (Theorem 4, as printed).")
def theorem_4() -> Outcome:
    error = 0.0
    for seed, widths in enumerate([(1, 1), (4, 5), (16, 3)]):
        target = _long_skip(seed, widths)
        x = _draw(seed + 10)(200, 4)
        error = max(
            error, worst(constructions.concatenated(target)(x), target.net()(x))
        )
    return Outcome(
        judge(error < 1e-10), "w0, w1, w2 as printed", f"error {error:.0e}, biases too"
    )


@claim("N8", "The same for L layers, by concatenation and by addition.")
def theorem_4_any_depth() -> Outcome:
    errors, widths = {}, set()
    for build in (constructions.concatenated_minimal, constructions.additive):
        for depth in (1, 2, 3, 5, 8):
            target = _long_skip(depth, tuple(2 + i % 3 for i in range(depth)))
            x = _draw(depth + 20)(200, 4)
            net = build(target)
            errors[build.__name__, depth] = worst(net(x), target.net()(x))
            widths |= {n.size - 4 for n in net.nodes() if isinstance(n, Join)}
    error = max(errors.values())
    return Outcome(
        judge(error < 1e-10 and widths == {0}, error < 1e-10),
        "'by Proposition 1' for additive skips",
        f"errors up to {error:.0e}, L = 1 to 8; the added state has {min(widths)} to "
        f"{max(widths)} entries more than x",
        statement="The additive form needs its state lifted to d + sum h_i entries.",
    )


@claim("N9", "The containment is strict: concatenation expresses more.")
def strict() -> Outcome:
    found = strictness.certify()
    net = strictness.target_in_concatenated()
    x = np.linspace(-4, 4, 257)
    error = worst(net(x[:, None])[:, 0], strictness.target(x))
    return Outcome(
        judge(error == 0.0 and found.distance > 0.1),
        "claimed, not proved",
        f"relu(x) + relu(x - 1) exactly; every long skip of width 1 misses it by at "
        f"least {found.distance:.3f} on [-1, 2]",
    )


@claim("N10", "Real blocks (residual, dense, fractal, multi-level) are such nets.")
def real_blocks() -> Outcome:
    errors = {}
    for name in ("cifar_resnet", "cifar_densenet", "fractalnet", "ror3"):
        model = lw.zoo.entry(name).build_small()
        x = jax.random.normal(jax.random.key(0), (2, *model.input_shape))
        errors[name] = express(model, x).relative_error
    return Outcome(
        judge(max(errors.values()) < 1e-4),
        "as concatenation, affine maps and ReLU",
        ", ".join(f"{k} {v:.0e}" for k, v in errors.items()) + " (float32 models)",
    )


@claim("N11", "The drawn schemes: pooling, join and long skip without any of them.")
def drawings() -> Outcome:
    windows, _ = constructions.pool_windows((4,), 2)
    nets = {
        "pooling": constructions.max_pool(windows, 4),
        "join": constructions.join_branches("max", 2),
        "long skip": _long_skip(0, (3, 3)).net(),
    }
    left = {
        name: {type(n).__name__ for n in compile_net(net).nodes()}
        - {"Input", "Affine", "Pointwise", "Concat"}
        for name, net in nets.items()
    }
    return Outcome(
        judge(not any(left.values())),
        "figures 1 to 6",
        "only concatenations, affine maps and ReLU are left",
    )
