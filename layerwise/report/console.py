"""What rich prints: as plain text, and how wide."""

import io
import shutil
from typing import Any


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


def natural_width(table: Any) -> int:
    """Returns the characters that a table takes if nothing in it wraps."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(width=10_000)
    return Measurement.get(console, console.options, table).maximum
