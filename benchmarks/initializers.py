"""Do the schemes keep what they promise? Measured, layer by layer.

    python -m benchmarks.initializers --quick     # narrow networks, about two minutes
    python -m benchmarks.initializers --markdown  # into the pages of docs/, row by row
    python -m benchmarks.initializers --markdown --missing --only GELU  # go on

With ``--markdown`` the pages are what remembers: a row that is measured takes the place
of its predecessor as soon as it is there, and ``--missing`` measures the others only.

For each network and scheme, networks are drawn and run forward and backward on photo
crops. "off target" is the largest |log(mean q / target)| over all weight operations, in
percent, with the standard error of that mean; the target of q is 1, and 1/L behind
residual branches where the scheme says so. "spread" is the ratio of the largest to the
smallest mean second moment over all layers, forward and backward.
"""

import argparse
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np

import layerwise as lw
from experiments.photos import photo_crops
from layerwise.nn.blocks.residual import PreactivationBlock, basic
from layerwise.tracing import TracedModel
from layerwise.tracing.blocks import blocks, residual_blocks


SCHEMES = ("asv_forward", "kernel_forward", "kernel_backward", "balanced", "lsuv")
FORWARD = ("asv_forward", "kernel_forward", "lsuv")

DOCS = Path(__file__).parents[1] / "docs"
PAGE, CHOICE = DOCS / "initializers.md", DOCS / "choose_initializer.md"


class Vgg(nn.Module):
    """VGG-16's convolutions with max pooling 3x3 at stride 2, then one dense layer."""

    width: int = 64

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns 10 logits."""
        for i, depth in enumerate((2, 2, 3, 3, 3)):
            for _ in range(depth):
                x = nn.relu(nn.Conv(self.width * min(2**i, 8), (3, 3))(x))
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        return nn.Dense(10)(x.reshape(x.shape[0], -1))


class Resnet18(nn.Module):
    """ResNet-18 of pre-activation blocks, without normalization."""

    width: int = 64

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns 10 logits."""
        x = nn.Conv(self.width, (7, 7), strides=2)(x)
        x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for stage in range(4):
            for i in range(2):
                convs = basic(self.width * 2**stage, 2 if stage and not i else 1)
                x = PreactivationBlock(convs=convs, use_norm=False)(x)
        return nn.Dense(10)(nn.relu(x).mean((1, 2)))


class GeluCnn(nn.Module):
    """Sixteen convolutions with GELU, the mean over 2x2 positions after each four."""

    width: int = 64

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns 10 logits."""
        for i in range(16):
            x = nn.gelu(nn.Conv(self.width * 2 ** (i // 8), (3, 3))(x))
            if i % 4 == 3:
                x = nn.avg_pool(x, (2, 2), (2, 2))
        return nn.Dense(10)(x.mean((1, 2)))


def networks(quick: bool) -> dict[str, nn.Module]:
    """Returns the networks by name, narrow ones if `quick`."""
    width = 16 if quick else 64
    return {
        "F34": lw.zoo.f34(width=width, image_size=64),
        "VGG-16, max pool 3/2/1": Vgg(width),
        "ResNet-18 pre-activation": Resnet18(width),
        "GELU CNN": GeluCnn(width),
    }


class Row(NamedTuple):
    """One network under one scheme."""

    network: str
    scheme: str
    off: float
    off_error: float
    forward_spread: float
    backward_spread: float
    draws: int


def measure(
    network: str, model: nn.Module, scheme: str, inputs: np.ndarray, draws: int
) -> Row | None:
    """Returns the row, or None where the scheme does not know such a network."""
    # Normal draws for all: an orthogonal one of F34 costs more than measuring it.
    distribution = "normal" if scheme == "lsuv" else None
    try:
        law = lw.scheme_law(model, inputs, scheme, distribution=distribution)
    except lw.errors.UnsupportedModelError:
        return None
    measured = lw.measure(model, None, inputs, draws=draws, redraw=law)
    q, r = measured.curve("forward"), measured.curve("backward")
    target = np.zeros(q.shape[1] - 1)
    if scheme == "kernel_forward":
        target = log_targets(measured.traced)
    mean = q[:, 1:].mean(axis=0)
    off = np.abs(np.log(mean) - target)
    worst = int(np.argmax(off))
    error = q[:, 1 + worst].std(ddof=1) / math.sqrt(len(q)) / mean[worst]
    back = r[:, :-1].mean(axis=0)
    return Row(
        network,
        scheme,
        100 * off[worst],
        100 * float(error),
        float(mean.max() / mean.min()),
        float(back.max() / back.min()),
        len(q),
    )


def log_targets(traced: TracedModel) -> np.ndarray:
    """Returns the log second moment that the automatic scheme promises each layer."""
    found = residual_blocks(blocks(traced))
    ends = {b.layers[-1].path for block in found for b in block.residuals}
    share = -math.log(sum(b.repeats for b in found)) if found else 0.0
    return np.array([share if y.path in ends else 0.0 for y in traced.layers])


HEAD = (
    "| network | scheme | off target, % | s.e. | spread of q | spread of r | draws |\n"
    "|---|---|---|---|---|---|---|"
)


def table(rows: Iterable[Row]) -> str:
    """Returns the rows as Markdown."""
    lines = [HEAD]
    for r in rows:
        off = f"{r.off:.1f} | {r.off_error:.1f}" if r.scheme in FORWARD else " | "
        lines.append(
            f"| {r.network} | `{r.scheme}` | {off} | {r.forward_spread:.3g} "
            f"| {r.backward_spread:.3g} | {r.draws} |"
        )
    return "\n".join(lines)


def read(text: str) -> list[Row]:
    """Returns the rows of a table that `table` wrote."""
    rows = []
    for line in text.splitlines():
        cells = [c.strip() for c in line.split("|")[1:-1]]
        if len(cells) == len(Row._fields) and cells[1].startswith("`"):
            off, error, q, r = (float(c) if c else math.nan for c in cells[2:6])
            name, scheme = cells[0], cells[1].strip("`")
            rows.append(Row(name, scheme, off, error, q, r, int(cells[6])))
    return rows


def between(text: str, name: str, new: str | None = None) -> str:
    """Returns what stands between a page's marks; with `new`, the page with that."""
    begin, end = f"<!-- {name}: begin -->\n", f"\n<!-- {name}: end -->"
    start = text.index(begin) + len(begin)
    stop = text.index(end, start - 1)
    return text[start:stop] if new is None else text[:start] + new + text[stop:]


def write(row: Row) -> None:
    """Puts a row into the pages, in the place of what they had for it."""
    page = PAGE.read_text()
    rows = {(r.network, r.scheme): r for r in [*read(between(page, "measured")), row]}
    order = [(n, s) for n in networks(False) for s in SCHEMES]
    kept = [rows[key] for key in order if key in rows]
    lines = "\n".join(f"* {line}" for line in balance(kept).splitlines())
    PAGE.write_text(between(page, "measured", f"{table(kept)}\n\n{lines}"))
    spreads = [
        "| network | scheme | forward | backward |",
        "|---|---|---|---|",
        *(
            f"| {r.network} | `{r.scheme}` | {r.forward_spread:.3g} "
            f"| {r.backward_spread:.3g} |"
            for r in kept
        ),
    ]
    chosen = CHOICE.read_text()
    CHOICE.write_text(between(chosen, "measured", "\n".join(spreads)))


def balance(rows: Sequence[Row]) -> str:
    """Returns, for each network, whether `balanced` is within its bound."""
    lines = []
    for name in dict.fromkeys(r.network for r in rows):
        of = {r.scheme: r for r in rows if r.network == name}
        if not of.keys() >= {"kernel_forward", "kernel_backward", "balanced"}:
            continue
        worst = max(
            of["kernel_forward"].backward_spread, of["kernel_backward"].forward_spread
        )
        bound = 1.5 * math.sqrt(worst)
        got = max(of["balanced"].forward_spread, of["balanced"].backward_spread)
        verdict = "within" if got <= bound else "beyond"
        lines.append(f"{name}: balanced {got:.3g}, {verdict} the bound {bound:.3g}")
    return "\n".join(lines)


def main(report: Callable[[str], None] = print) -> None:
    """Runs the benchmark and prints the table, or writes it into the pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--draws", type=int, default=40)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--only", default="", help="part of a network's name")
    parser.add_argument("--schemes", nargs="+", default=SCHEMES, choices=SCHEMES)
    parser.add_argument("--markdown", action="store_true", help="write the pages")
    parser.add_argument("--missing", action="store_true", help="keep rows they have")
    args = parser.parse_args()
    if args.quick and args.markdown:
        parser.error("the pages are of the full networks")
    inputs = photo_crops(args.batch, 64)
    known = read(between(PAGE.read_text(), "measured")) if args.missing else []
    have = {(r.network, r.scheme) for r in known}
    rows = []
    for name, model in networks(args.quick).items():
        for scheme in args.schemes:
            if args.only not in name or (name, scheme) in have:
                continue
            row = measure(name, model, scheme, inputs, args.draws)
            if row is not None:
                rows.append(row)
                report(table([row]).splitlines()[-1])
                if args.markdown:
                    write(row)
    report("")
    report(table(rows))
    report(balance(rows))


if __name__ == "__main__":
    main()
