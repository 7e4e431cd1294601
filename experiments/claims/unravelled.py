"""R: what residual and skip connections are; the unravelled view [Veit2016]."""

import jax
import jax.numpy as jnp
import numpy as np

import layerwise as lw
from experiments.claims import trained
from experiments.claims.ledger import Outcome, claim, judge, worst
from layerwise.expressivity import share_of_paths
from layerwise.expressivity.paths import (
    Block,
    gradient_by_length,
    path_gradients,
    path_length_law,
    path_outputs,
    run_blocks,
)
from layerwise.tracing import trace
from layerwise.tracing.blocks import blocks
from layerwise.tracing.graph import evaluate
from layerwise.tracing.prepare import prepare


@claim("R1", "A residual block is H(x) = F(x) + x, in both orders of the paper.")
def residual_block() -> Outcome:
    errors = {}
    for name in ("cifar_resnet", "preresnet"):
        model = lw.zoo.entry(name).constructor(
            **{**lw.zoo.entry(name).small, "depth": 29 if name == "preresnet" else 14}
        )
        ready = prepare(model, None, None)
        params = model.init(jax.random.key(0), *ready.inputs)
        traced = trace(ready.model, params, ready.inputs)
        values: dict[int, jax.Array] = {}

        def keep(value, x, values=values):
            values[value] = x
            return x

        evaluate(traced.graph, (*jax.tree.leaves(params), *ready.inputs), on_value=keep)
        found = [b for b in blocks(traced) if b.kind == "add" and b.identity]
        gaps = [
            worst(
                np.asarray(values[b.exit] - values[b.residuals[0].end]),
                np.asarray(values[b.entry], np.float64),
            )
            for b in found
        ]
        errors[name] = (len(gaps), max(gaps))
    return Outcome(
        judge(all(n > 0 and e < 1e-5 for n, e in errors.values())),
        "H(x) = F(x) + x",
        ", ".join(f"{k}: {n} blocks to {e:.0e}" for k, (n, e) in errors.items()),
    )


def _blocks(n: int, size: int, linear: bool) -> list[Block]:
    keys = jax.random.split(jax.random.key(n), n)

    def branch(params, x):
        return x @ params if linear else jax.nn.relu(x @ params)

    scale = 0.5 / np.sqrt(size)
    return [Block(branch, scale * jax.random.normal(k, (size, size))) for k in keys]


@claim("R2", "n blocks have 2^n paths, whose outputs (gradients) add up to the net's.")
def paths() -> Outcome:
    with jax.enable_x64(True):
        linear = _blocks(10, 6, linear=True)
        x = jax.random.normal(jax.random.key(1), (3, 6))
        outputs, _ = path_outputs(linear, x)
        gap = worst(np.asarray(outputs.sum(0)), np.asarray(run_blocks(linear, x)[-1]))
        curved = _blocks(8, 5, linear=False)
        x, g = jax.random.normal(jax.random.key(2), (2, 4, 5))
        parts, _ = path_gradients(curved, x, g)
        _, pull = jax.vjp(lambda x: run_blocks(curved, x)[-1], x)
        back = worst(np.asarray(parts.sum(0)), np.asarray(pull(g)[0]))
    deep = lw.describe(lw.zoo.cifar_resnet(depth=110))
    counted = deep.paths == 2 ** len(deep.blocks)
    return Outcome(
        judge(len(outputs) == 2**10 and gap < 1e-10 and back < 1e-10 and counted),
        "2^n; 2^54 for ResNet-110",
        f"{len(outputs)} paths for n = 10, sum to {gap:.0e}, gradients to {back:.0e}; "
        f"2^{deep.paths.bit_length() - 1} in ResNet-110",
        statement="Not independent ones: they share their weights.",
    )


@claim(
    "R3",
    "Deleting one block hardly hurts a residual net, and ruins a plain one.",
    slow=True,
)
def lesions() -> Outcome:
    residual, plain = trained.lesion_errors()
    base, one = residual[0], residual[1:]
    plain_base, plain_one = plain[0], plain[1:]
    chance = 0.9
    hardly = np.median(one) - base < 0.15
    ruined = np.median(plain_one) > 0.6 * chance
    return Outcome(
        judge(bool(hardly and ruined)),
        "a few points against about 90 % error",
        "",
        f"error {base:.3f} whole; one block deleted: median {np.median(one):.3f} "
        f"(worst {max(one):.3f}); plain: {plain_base:.3f} whole, median "
        f"{np.median(plain_one):.3f}",
        "Down-sampling blocks excepted. Digits, 20 layers.",
    )


@claim("R4", "Path lengths are binomial; gradients come from the short ones.")
def lengths() -> Outcome:
    law = path_length_law(54)
    mean = float(law @ np.arange(55))
    short, middle = share_of_paths(54, 5, 17), share_of_paths(54, 19, 35)
    parts = gradient_by_length(_blocks(16, 32, linear=False), *jnp.ones((2, 32)))
    norms = np.linalg.norm(np.asarray(parts), axis=-1)
    per_path = norms / (path_length_law(16) * 2.0**16)
    decays = bool(np.all(np.diff(per_path) < 0))
    return Outcome(
        judge(abs(short - 0.0045) < 5e-5 and middle > 0.95 and decays),
        "0.45 % of paths have length 5 to 17; more than 95 % have 19 to 35",
        f"{short:.4%} and {middle:.2%}, mean length {mean:g}; gradient per path falls "
        f"at every length: {decays}",
    )


@claim("R5", "Series of identity sums are residual; dense, gated, long ones skips.")
def kinds() -> Outcome:
    expected = {
        "residual": (
            "cifar_resnet",
            "cifar_resnext",
            "wide_resnet",
            "pyramidnet",
            "vit_ti16",
            "stacked_hourglass",
        ),
        "skip": ("cifar_densenet", "highway_mlp", "unet", "fpn_resnet50"),
        "neither": ("vgg16", "f34"),
    }
    wrong = [
        name
        for kind, names in expected.items()
        for name in names
        if lw.describe(lw.zoo.entry(name).build_small()).connections != kind
    ]
    return Outcome(
        judge(not wrong),
        "by the graph",
        f"{sum(map(len, expected.values())) - len(wrong)} of "
        f"{sum(map(len, expected.values()))} architectures as the article has them",
    )


@claim("R6", "Deeper plain nets train worse; residual nets do not.", slow=True)
def degradation() -> Outcome:
    table = trained.degradation()
    plain, residual = table["plain"], table["residual"]
    worse = [b > a for a, b in zip(plain[0], plain[1], strict=True)]
    fine = np.mean(residual[1]) <= np.mean(plain[1])
    return Outcome(
        judge(all(worse) and bool(fine)),
        "plain-56 trains worse than plain-20; ResNet-56 does not",
        "",
        f"training loss, 3 seeds: plain {np.mean(plain[0]):.3f} (20) and "
        f"{np.mean(plain[1]):.3f} (56), residual {np.mean(residual[0]):.3f} and "
        f"{np.mean(residual[1]):.3f}",
        "Digits, a few epochs: the ordering, not the published errors.",
    )
