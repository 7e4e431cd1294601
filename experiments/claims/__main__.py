"""Runs the ledger of claims, prints it, and writes it as a page.

Usage:
    python -m experiments.claims                    # all that take seconds
    python -m experiments.claims --slow             # all: networks are trained
    python -m experiments.claims --only=H5,T7
    python -m experiments.claims --slow --markdown=docs/claims.md
"""

import sys
from pathlib import Path

from absl import app, flags
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.claims import ledger
from layerwise.errors import InvalidArgumentError


_SLOW = flags.DEFINE_bool("slow", False, "Also those that train or measure at length.")
_ONLY = flags.DEFINE_list("only", [], "Ids of claims, such as H5,T7.")
_RECORD = flags.DEFINE_string(
    "record", None, "A file of rows, which a run that was stopped continues."
)
_MARKDOWN = flags.DEFINE_string("markdown", None, "Where to write the ledger's page.")


def main(argv: list[str]) -> None:
    """Runs what the flags say."""
    del argv
    console = Console()
    try:
        chosen = ledger.select(_ONLY.value, _SLOW.value)
    except InvalidArgumentError as error:
        console.print(str(error), style="red", highlight=False)
        sys.exit(2)

    def report(row: ledger.Row) -> None:
        console.print(f"{row.claim.id:>4}  {row.outcome.verdict:<14} {row.claim.text}")

    record = Path(_RECORD.value) if _RECORD.value else None
    rows = ledger.run(sorted(chosen, key=lambda c: c.slow), report, record)
    table = Table("id", "verdict", "printed", "exact", "measured", "s")
    for row in rows:
        o = row.outcome
        seconds = f"{row.seconds:.0f}"
        cells = (row.claim.id, o.verdict, o.printed, o.exact, o.measured, seconds)
        table.add_row(*map(Text, cells))  # brackets are no markup here
    console.print(table)
    if _MARKDOWN.value:
        Path(_MARKDOWN.value).write_text(ledger.markdown(rows))
        console.print(f"Wrote {_MARKDOWN.value}.")


if __name__ == "__main__":
    app.run(main)
