"""What each kind of layer does to the signal: the rule's number beside a measured one.

    python -m experiments.claims.layer_effects              # 200 networks each
    python -m experiments.claims.layer_effects --markdown   # the page docs/layers.md

A kind stands between two random layers of width 64, on 16 examples of independent
standard normal entries. *Forward* is E[out^2] / E[in^2] of its values, *backward*
E[in^2] / E[out^2] of the cotangents.
"""

import argparse
import dataclasses

import flax.linen as nn
import jax
import numpy as np

import layerwise as lw
from layerwise.nn import layers
from layerwise.tracing.sites import NamedValue


WIDTH = 64
EXAMPLES = 16
_SHAPES = {1: (WIDTH,), 2: (8, WIDTH), 3: (8, 8, WIDTH)}


class Probe(nn.Module):
    """A random layer, the kind, a random layer.

    Attributes:
        kind: Name of the kind.
    """

    kind: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the output of the last layer."""
        kind = layers.kind(self.kind)
        options = dict(kind.example)
        if "features" in options:
            options["features"] = WIDTH
        if "num_heads" in options:
            options["num_heads"] = 4
        if not kind.integer:
            x = _layer(x)(x)
        x = kind.make(**options)(x)
        return _layer(x)(x)


def _layer(x: jax.Array) -> nn.Module:
    return nn.Conv(WIDTH, (3, 3)) if x.ndim == 4 else nn.Dense(WIDTH)


@dataclasses.dataclass(frozen=True)
class Ratio:
    """One direction's factor.

    Attributes:
        predicted: By the kind's rules; NaN where there is none.
        measured: Of the means over networks.
        sem: Its standard error.
        grade: Of the prediction.
        tolerance: What the prediction itself says it may be off by, in log.
    """

    predicted: float
    measured: float
    sem: float
    grade: str
    tolerance: float

    @property
    def sigmas(self) -> float:
        """How far beyond its tolerance the prediction is, in standard errors."""
        gap = abs(self.predicted - self.measured)
        allowed = self.predicted * np.expm1(self.tolerance)
        return max(gap - allowed, 0.0) / (self.sem + 1e-6 * self.measured)


def probe(kind: layers.LayerKind, draws: int) -> dict[str, Ratio]:
    """Returns the factors of one kind, by direction.

    Args:
        kind: The kind of layer.
        draws: Networks to measure.
    """
    model, key = Probe(kind.name), jax.random.key(1)
    if kind.integer:
        x = jax.random.randint(key, (EXAMPLES, *kind.input_shape), 0, 7)
    else:
        x = jax.random.normal(key, (EXAMPLES, *_SHAPES[len(kind.input_shape)]))
    rngs = {"dropout": jax.random.key(2)} if kind.random else None
    predicted = lw.predict(model, None, x, rngs=rngs)
    measured = lw.measure(model, None, x, rngs=rngs, draws=draws)
    traced = measured.traced
    before = None if kind.integer else traced.layers[0].u
    after = traced.layers[-1].operand
    return {
        "forward": _ratio(predicted, measured, "forward", after, before),
        "backward": _ratio(predicted, measured, "backward", before, after),
    }


def _ratio(
    predicted: lw.Prediction,
    measured: lw.Measurement,
    direction: str,
    to: int | None,
    from_: int | None,
) -> Ratio:
    """Returns the factor from one value to another; of nothing, 1."""
    if to is None:
        return Ratio(np.nan, np.nan, np.nan, "-", 0.0)
    samples = measured.second_moment(direction)[measured.ensemble]
    column = {site.value: i for i, site in enumerate(measured.sites)}
    # Values are numbered anew where a prediction writes loops out: go by name.
    named = {_name(site): i for i, site in enumerate(predicted.sites)}
    row = {v: named[_name(measured.sites[i])] for v, i in column.items()}
    second = predicted.second[direction]
    top = samples[:, column[to]]
    bottom = np.ones_like(top) if from_ is None else samples[:, column[from_]]
    ratio = top.mean() / bottom.mean()
    spread = (top - ratio * bottom).std(ddof=1) / bottom.mean()
    grade = predicted.grade[direction][row[to]]
    return Ratio(
        second[row[to]] / (1.0 if from_ is None else second[row[from_]]),
        ratio,
        spread / np.sqrt(len(top)),
        "-" if grade is None else grade.label,
        float(predicted.tolerance[direction][row[to]]),
    )


def _name(site: NamedValue) -> tuple[int, str, str, tuple[int, ...]]:
    return site.layer, site.path, site.kind, site.iteration


def table(draws: int) -> str:
    """Returns every kind's row, as Markdown."""
    lines = [
        "| layer | what it does | forward: predicted | measured | backward: predicted "
        "| measured | grade |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in layers.kinds():
        ratios = probe(kind, draws)
        cells = [f"`{kind.name}`", kind.effect]
        for ratio in ratios.values():
            cells += [
                f"{ratio.predicted:.4g}",
                f"{ratio.measured:.4g} ± {ratio.sem:.1g}",
            ]
        grades = dict.fromkeys(r.grade for r in ratios.values() if r.grade != "-")
        lines.append("| " + " | ".join([*cells, ", ".join(grades)]) + " |")
    return "\n".join(lines).replace("nan ± nan", "-").replace("nan", "-")


HEAD = """# What each kind of layer does to the signal

`python -m experiments.claims.layer_effects --markdown` writes this page. Each kind
stands between two random layers of width 64, on 16 examples of independent standard
normal entries.
*Forward* is E[out²] / E[in²] of the layer's values, *backward* E[in²] / E[out²] of the
cotangents, as predicted from the program and as measured over {draws} networks, with
standard errors. The grades are those of [the theory engine](theory.md).
Layers that draw random numbers draw the same ones in every network, which is why
dropout shows its one mask's factor.

"""


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    head = HEAD.format(draws=options.draws) if options.markdown else ""
    print(head + table(options.draws))


if __name__ == "__main__":
    main()
