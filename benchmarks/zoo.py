"""Every architecture of the zoo, predicted and measured: which grades does it get?

    python -m benchmarks.zoo                                # all architectures
    python -m benchmarks.zoo --only resnet                  # those whose name holds it
    python -m benchmarks.zoo --markdown docs/zoo.md         # into a page

Each architecture is built small (`layerwise.zoo.Entry.small`: the structure of the
published one, narrow and shallow) and fed a few standard normal examples.
"""

import argparse
import time
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np

import layerwise as lw
from layerwise import zoo
from layerwise.theory.prediction import DIRECTIONS
from layerwise.theory.state import Grade


EXAMPLES = 4


class Direction(NamedTuple):
    """What is known of one direction.

    Attributes:
        grades: Grade -> number of weight operations.
        error: |log(predicted / measured)| where it is largest, of what is graded exact
            or approximate; NaN where nothing is.
        sem: Its standard error.
        beyond: Weight operations further off than stated and 3 standard errors.
    """

    grades: Mapping[str, int]
    error: float = np.nan
    sem: float = np.nan
    beyond: int = 0


class Found(NamedTuple):
    """What is known of one architecture."""

    shape: tuple[int, ...]
    operations: int
    equations: int
    directions: Mapping[str, Direction]
    sampled: Mapping[tuple[str, str], int]
    seconds: tuple[float, float] = (0.0, 0.0)


def inputs(name: str) -> tuple[object, jax.Array]:
    """Returns the small model of an architecture, and its examples."""
    model = zoo.entry(name).build_small()
    shape = (EXAMPLES, *model.input_shape)
    return model, jax.random.normal(jax.random.key(0), shape)


def graded(name: str) -> tuple[lw.Prediction, Found]:
    """Predicts an architecture and counts its grades."""
    model, x = inputs(name)
    start = time.perf_counter()
    predicted = lw.predict(model, None, x)
    at = _operations(predicted)
    directions = {}
    for d in DIRECTIONS:
        grades = [predicted.grade[d][i] for i in at]
        found = Counter("none" if g is None else g.label for g in grades)
        directions[d] = Direction(dict(found))
    sampled = Counter(
        (label.partition(" at ")[0], _general(reason))
        for label, reason in predicted.sampled.items()
    )
    seconds = (time.perf_counter() - start, 0.0)
    return predicted, Found(
        x.shape[1:], len(at), predicted.equations, directions, dict(sampled), seconds
    )


def compared(name: str, draws: int) -> Found:
    """Predicts and measures an architecture."""
    predicted, found = graded(name)
    model, x = inputs(name)
    start = time.perf_counter()
    measured = lw.measure(model, None, x, draws=draws)
    column = {_place(s): i for i, s in enumerate(measured.sites)}
    directions = {}
    for d in DIRECTIONS:
        samples = measured.second_moment(d)[measured.ensemble]
        mean = samples.mean(axis=0)
        sem = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
        errors, beyond = [(-1.0, np.nan)], 0
        for i in _operations(predicted):
            grade, j = predicted.grade[d][i], column[_place(predicted.sites[i])]
            if grade is None or grade is Grade.MEASURED or not mean[j] > 0:
                continue
            error = abs(float(predicted.log_second[d][i] - np.log(mean[j])))
            errors.append((error, float(sem[j] / mean[j])))
            allowed = predicted.tolerance[d][i] + 3 * errors[-1][1]
            beyond += error > allowed + 1e-3
        error, width = max(errors)
        grades = found.directions[d].grades
        directions[d] = Direction(
            grades, error if error >= 0 else np.nan, width, beyond
        )
    seconds = (found.seconds[0], time.perf_counter() - start)
    return found._replace(directions=directions, seconds=seconds)


def _operations(predicted: lw.Prediction) -> list[int]:
    return [i for i, s in enumerate(predicted.sites) if s.kind == "u" and s.layer]


def _place(site: object) -> tuple[object, ...]:
    return tuple(getattr(site, k) for k in ("layer", "path", "kind", "iteration"))


def _general(reason: str) -> str:
    """A reason without the numbers that are of one layer."""
    return " ".join("n" if _number(w) else w for w in reason.split())


def _number(word: str) -> bool:
    return word.strip("-").replace(".", "", 1).isdigit()


HEADER = (
    "architecture",
    "input",
    "weight operations",
    "equations",
    "forward",
    "off by",
    "backward",
    "off by",
)


def cells(name: str, found: Found) -> list[str]:
    """Returns a row of the table."""
    row = [f"`{name}`", " x ".join(map(str, found.shape))]
    row += [str(found.operations), str(found.equations)]
    for d in DIRECTIONS:
        one = found.directions[d]
        off = f"{one.error:.3f} ± {one.sem:.3f}" if np.isfinite(one.error) else "-"
        off += f" (**{one.beyond} beyond**)" if one.beyond else ""
        row += [grades_text(one.grades), off]
    return row


def grades_text(grades: Mapping[str, int]) -> str:
    """Returns how many weight operations have which grade."""
    order = [*(g.label for g in Grade), "none"]
    return ", ".join(f"{grades[g]} {g}" for g in order if g in grades)


def sampled_rows(found: Mapping[str, Found]) -> list[list[str]]:
    """Returns what was sampled and why, and the architectures where it was."""
    where: dict[tuple[str, str], list[str]] = {}
    for name, one in found.items():
        for key in one.sampled:
            where.setdefault(key, []).append(name)
    return [
        [f"`{what}`", reason, ", ".join(f"`{n}`" for n in names)]
        for (what, reason), names in sorted(where.items())
    ]


HEAD = """# The zoo: what is predicted, and what is sampled

`python -m benchmarks.zoo --markdown docs/zoo.md` writes this page. Every architecture
of `layerwise.zoo` is built as its tests build it (narrow and shallow, all of its
structure), with {examples} examples of independent standard normal entries, the model's
own initialization, and normalization in evaluation mode.

*forward* and *backward* count the weight operations whose second moment, of the
pre-activation and of its cotangent, has each [grade](theory.md); `none` is where
neither sweep came. *off by* is |log(predicted / measured)| where it is largest among
those graded exact or approximate, over {draws} networks, with its standard error; in
bold, how many are further off than the prediction states and three standard errors
together. Nothing is claimed of what is graded `measured`.

"""

REASONS = """
## What was sampled, and why

An equation is sampled where it has no rule or its rule's assumptions do not hold.
What depends on it is graded `measured`.

"""


def table(header: tuple[str, ...], rows: list[list[str]]) -> str:
    """Returns a Markdown table."""
    lines = [header, ("---",) * len(header), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def page(found: Mapping[str, Found], draws: int) -> str:
    """Returns docs/zoo.md."""
    rows = [cells(name, one) for name, one in found.items()]
    free = sum(not one.sampled for one in found.values())
    total = f"Of {len(found)} architectures, {free} are predicted throughout.\n\n"
    head = HEAD.format(examples=EXAMPLES, draws=draws)
    why = table(("equation", "reason", "where"), sampled_rows(found))
    return head + total + table(HEADER, rows) + REASONS + why


def main() -> None:
    """Prints the rows, and writes the page after each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--draws", type=int, default=128)
    parser.add_argument("--only", default="", help="those whose name holds this")
    parser.add_argument("--markdown", default="", help="file to write the page to")
    options = parser.parse_args()
    found: dict[str, Found] = {}
    for name in zoo.names():
        if options.only not in name:
            continue
        found[name] = compared(name, options.draws)
        jax.clear_caches()
        took = " + ".join(f"{s:.1f} s" for s in found[name].seconds)
        print(" | ".join([*cells(name, found[name]), took]), flush=True)
        if options.markdown:
            with open(options.markdown, "w", encoding="utf-8") as file:
                file.write(page(found, options.draws))


if __name__ == "__main__":
    main()
