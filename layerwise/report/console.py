"""What rich prints, as plain text."""

import io
from typing import Any


def as_text(shown: Any, width: int = 140) -> str:
    """Returns what a console of that width shows of an object, without colours."""
    from rich.console import Console

    stream = io.StringIO()
    # In a notebook, rich would show what it prints beside writing it.
    Console(file=stream, width=width, no_color=True, force_jupyter=False).print(shown)
    return stream.getvalue()
