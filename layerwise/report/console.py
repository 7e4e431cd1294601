"""What rich prints: as plain text, and tables as wide as there is room."""

import io
import shutil
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any


_PATH = 16
"""Letters of a path that stay in one line where there is little room."""


def as_text(shown: Any, width: int | None = None) -> str:
    """Returns what a console shows of an object, without colours.

    Args:
        shown: What rich can print.
        width: Characters to a line; if None as many as the terminal has, within reason,
            and 120 where there is none (a notebook, a file).
    """
    from rich.console import Console

    if width is None:
        width = min(max(shutil.get_terminal_size((120, 40)).columns, 60), 160)
    stream = io.StringIO()
    # In a notebook, rich would show what it prints beside writing it, and take the text
    # for a terminal, as kernels set FORCE_COLOR.
    Console(
        file=stream,
        width=width,
        color_system=None,
        force_terminal=False,
        force_jupyter=False,
    ).print(shown)
    return stream.getvalue()


def table_of(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    left_out: Collection[str] = (),
    *,
    left: Collection[str] = ("path",),
    title: str | None = None,
) -> Any:
    """Returns a table of layers for a terminal, in which only paths wrap.

    Args:
        header: Names of the columns.
        rows: Their cells.
        left_out: Columns to do without.
        left: Columns that are aligned at the left.
        title: Of the table.
    """
    from rich.table import Table

    kept = [i for i, name in enumerate(header) if name not in left_out]
    table = Table(title=title, title_justify="left")
    for name in (header[i] for i in kept):
        table.add_column(
            name,
            justify="left" if name in left else "right",
            no_wrap=name != "path",
            overflow="fold",
            style="bold" if name.endswith("mean") else None,
        )
    for row in rows:
        table.add_row(*(row[i] for i in kept))
    return table


def fitted(
    make: Callable[[Collection[str]], list[Any]],
    spared: Sequence[str],
    paths: Sequence[str],
    width: int,
) -> list[Any]:
    """Returns tables without as many columns as it takes to show the others whole.

    Args:
        make: Columns to leave out -> the tables.
        spared: Columns to leave out, the first one first.
        paths: What stands in the column "path", which may wrap.
        width: Characters that there are.
    """
    spare = max(0, max(map(len, paths), default=0) - _PATH)
    for count in range(len(spared) + 1):
        tables = make(spared[:count])
        if max(map(natural_width, tables)) - spare <= width:
            break
    return tables


def natural_width(table: Any) -> int:
    """Returns the characters that a table takes if nothing in it wraps."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(width=10_000)
    return Measurement.get(console, console.options, table).maximum
