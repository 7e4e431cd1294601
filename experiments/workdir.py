"""The folder that one run of an experiment owns, and files that survive a kill."""

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from ml_collections import ConfigDict
from tqdm import tqdm

from layerwise.errors import InvalidArgumentError, message


def open_workdir(path: str | Path, config: ConfigDict) -> Path:
    """Makes the folder, or opens it if it holds a run of the same configuration.

    Writes ``config.json``.

    Raises:
        InvalidArgumentError: If the folder belongs to another configuration, or cannot
            be written.
    """
    folder = Path(path)
    record = folder / "config.json"
    text = json.dumps(config.to_dict(), indent=2, sort_keys=True)
    if record.exists() and json.loads(record.read_text()) != json.loads(text):
        raise InvalidArgumentError(
            message(
                f"{folder} holds a run of another configuration.",
                "Its results would be overwritten by those of this one.",
                "Pass --workdir=<a new folder>, or delete this one.",
            )
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(record, text + "\n")
    except OSError as error:
        raise InvalidArgumentError(
            message(
                f"{folder} cannot be written: {error.strerror}.",
                "A run keeps its configuration and results there.",
                "Pass --workdir=<a folder of yours>.",
            )
        ) from error
    return folder


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Waits until no other process works in the folder, and keeps others out.

    A process that is killed lets go of it: the lock is the operating system's.
    """
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Waiting for the process that works in {folder}.", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def replace_file(path: Path, text: str) -> None:
    """Writes a file so that it is there as a whole, or as it was before."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def whole_lines(path: Path) -> list[str]:
    """Returns the whole lines of a file; a last one without its end is left out."""
    if not path.exists():
        return []
    return [y for y in path.read_text().splitlines(keepends=True) if y.endswith("\n")]


def append_line(path: Path, row: dict[str, Any]) -> None:
    """Adds one line of JSON, which is on the disk when this returns."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def recorded(
    path: Path,
    cases: Iterable[dict[str, Any]],
    compute: Callable[..., dict[str, Any]],
    title: str,
) -> pd.DataFrame:
    """Returns a row for every case, computing those that the file does not hold yet.

    Every row is in the file as soon as it is computed. A run that was killed loses the
    case it was at; a finished one computes nothing.

    Args:
        path: The file, one line of JSON a row.
        cases: What tells the rows apart, as fields.
        compute: The fields of a case, by keyword, to the other fields of its row.
        title: Of the progress bar.
    """
    lines = whole_lines(path)
    replace_file(path, "".join(lines))
    cases, rows = list(cases), [json.loads(y) for y in lines]
    done = {_identity(row, cases[0]) for row in rows}
    todo = [c for c in cases if _identity(c, c) not in done]
    for case in tqdm(todo, desc=title, disable=not todo):
        rows.append({**case, **compute(**case)})
        append_line(path, rows[-1])
    order = {_identity(c, c): i for i, c in enumerate(cases)}
    rows.sort(key=lambda row: order[_identity(row, cases[0])])
    return pd.DataFrame(rows)


def _identity(row: dict[str, Any], fields: Iterable[str]) -> str:
    return json.dumps([row[f] for f in fields])
