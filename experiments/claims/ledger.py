"""The ledger: one row per claim of the documents, decided by running it.

A claim is a function without arguments that computes what the document says and what is
true, and returns an `Outcome`. What is printed in a document is in the function as a
number or a formula; the verdict comes from comparing, never from a constant.
"""

import dataclasses
import importlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from layerwise.errors import InvalidArgumentError, did_you_mean, message


HOLDS = "holds"
ONLY_IF = "holds only if"
FAILS = "does not hold"
NOT_RUN = "not run"

DOCUMENTS = {
    "N": "Nagase & Ishiwata (2019), pooling by skip connections",
    "H": "Henmi & Kato (2020), adaptive signal variances",
    "R": "residual and skip connections, with Veit et al. (2016)",
    "T": "Taki (2017), residual networks and depth",
    "L": "the kinds of layers",
}


_DECIDED_IN = ("pooling", "variance", "unravelled", "residual", "layer_kinds")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What running a claim gave.

    Attributes:
        verdict: One of the four above.
        printed: What the document says, as numbers where it has them.
        exact: What a proof, a closed form or exact arithmetic says.
        measured: What samples say, with standard errors; empty where nothing is random.
        statement: The claim as it should read; empty where it holds as printed.
    """

    verdict: str
    printed: str
    exact: str = ""
    measured: str = ""
    statement: str = ""


@dataclasses.dataclass(frozen=True)
class Claim:
    """One claim.

    Attributes:
        id: Letter of the document and number, such as "H5".
        text: What it claims, in one line.
        run: Decides it.
        slow: Whether it takes more than a few seconds (networks are trained or
            measured at full size).
    """

    id: str
    text: str
    run: Callable[[], Outcome]
    slow: bool


_CLAIMS: dict[str, Claim] = {}
_Decider = Callable[[], Outcome]


def claim(id_: str, text: str, *, slow: bool = False) -> Callable[[_Decider], _Decider]:
    """Registers a function as the one that decides a claim."""

    def add(function: _Decider) -> _Decider:
        if id_ in _CLAIMS:
            raise ValueError(f"Claim {id_} is decided twice.")
        _CLAIMS[id_] = Claim(id_, text, function, slow)
        return function

    return add


def claims() -> tuple[Claim, ...]:
    """Returns every claim, by document and number."""
    for name in _DECIDED_IN:
        importlib.import_module(f"experiments.claims.{name}")
    order = list(DOCUMENTS)
    return tuple(
        sorted(_CLAIMS.values(), key=lambda c: (order.index(c.id[0]), int(c.id[1:])))
    )


def select(only: list[str], slow: bool) -> list[Claim]:
    """Returns the claims to run.

    Raises:
        InvalidArgumentError: If an id is unknown.
    """
    known = {c.id: c for c in claims()}
    for id_ in only:
        if id_ not in known:
            raise InvalidArgumentError(
                message(
                    f"No claim {id_!r}.{did_you_mean(id_, list(known))}",
                    f"There are {len(known)}: {', '.join(known)}.",
                    "Pass ids with commas between, as in --only=H5,T7.",
                )
            )
    if only:
        return [known[id_] for id_ in only]
    return [c for c in known.values() if slow or not c.slow]


def judge(as_printed: bool, as_corrected: bool = False) -> str:
    """Returns the verdict on a claim, and on its corrected form if it has one."""
    if as_printed:
        return HOLDS
    return ONLY_IF if as_corrected else FAILS


@dataclasses.dataclass(frozen=True)
class Row:
    """A claim and its outcome.

    Attributes:
        claim: The claim.
        outcome: What running it gave.
        seconds: How long that took.
    """

    claim: Claim
    outcome: Outcome
    seconds: float


def run(
    selected: Iterable[Claim],
    report: Callable[[Row], None] | None = None,
    record: Path | None = None,
) -> list[Row]:
    """Runs claims in order.

    Args:
        selected: Which.
        report: Called with each row as it is done.
        record: A file that keeps every row as it is done, a line each. What it holds
            already is not run again.
    """
    rows, kept = [], {} if record is None else read(record)
    for chosen in selected:
        if chosen.id in kept:
            rows.append(kept[chosen.id])
            continue
        start = time.perf_counter()
        row = Row(chosen, chosen.run(), time.perf_counter() - start)
        rows.append(row)
        if record is not None:
            with record.open("a") as file:
                outcome = dataclasses.asdict(row.outcome)
                line = {"id": chosen.id, "seconds": row.seconds, **outcome}
                file.write(json.dumps(line) + "\n")
        if report is not None:
            report(row)
    return rows


def read(record: Path) -> dict[str, Row]:
    """Returns the rows that a record holds, by id; a half-written line is left out."""
    known, rows = {c.id: c for c in claims()}, {}
    for line in record.read_text().splitlines() if record.exists() else []:
        try:
            fields = json.loads(line)
        except json.JSONDecodeError:
            continue
        id_, seconds = fields.pop("id"), fields.pop("seconds")
        rows[id_] = Row(known[id_], Outcome(**fields), seconds)
    return rows


def mean_sem(samples: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Returns a mean over networks and its standard error."""
    x = np.asarray(samples, np.float64)
    return float(x.mean()), float(x.std(ddof=1) / np.sqrt(x.size))


def within(samples: Sequence[float] | np.ndarray, value: float, sigmas: float) -> bool:
    """Whether `value` lies within so many standard errors of the samples' mean."""
    mean, sem = mean_sem(samples)
    return abs(mean - value) <= sigmas * sem + 1e-6 * abs(value)


def pm(samples: Sequence[float] | np.ndarray) -> str:
    """Returns mean and standard error, as text."""
    mean, sem = mean_sem(samples)
    return f"{mean:.4g} ± {sem:.1g}"


def worst(got: np.ndarray, expected: np.ndarray) -> float:
    """Returns the largest difference, relative to the larger of 1 and the expected."""
    gap = np.abs(np.asarray(got, np.float64) - expected)
    return float((gap / np.maximum(1.0, np.abs(expected))).max())


HEAD = """# The claims ledger

Every claim of the documents behind this project, run. `python -m experiments.claims`
prints this table, and with `--markdown` writes this page; nothing in it is typed in
but what the documents print. *Holds only if* means that the claim fails as printed and
holds in the corrected form.

"""


def markdown(rows: Sequence[Row]) -> str:
    """Returns the ledger as a page."""
    parts = [HEAD]
    for letter, title in DOCUMENTS.items():
        own = [row for row in rows if row.claim.id[0] == letter]
        if not own:
            continue
        parts.append(f"## {letter}: {title}\n\n")
        parts.append("| id | claim | verdict | printed | exact | measured |\n")
        parts.append("|---|---|---|---|---|---|\n")
        for row in own:
            o = row.outcome
            text = row.claim.text + (f" *{o.statement}*" if o.statement else "")
            cells = (row.claim.id, text, o.verdict, o.printed, o.exact, o.measured)
            parts.append(
                "| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |\n"
            )
        done = {row.claim.id for row in own}
        left = [c.id for c in claims() if c.id.startswith(letter) and c.id not in done]
        if left:
            parts.append(f"\nNot run for this page: {', '.join(left)}.\n")
        parts.append("\n")
    return "".join(parts).rstrip() + "\n"
