"""The folder that one run of an experiment owns."""

import json
from pathlib import Path

from ml_collections import ConfigDict

from layerwise.errors import InvalidArgumentError, message


def open_workdir(path: str, config: ConfigDict) -> Path:
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
        record.write_text(text + "\n")
    except OSError as error:
        raise InvalidArgumentError(
            message(
                f"{folder} cannot be written: {error.strerror}.",
                "A run keeps its configuration and results there.",
                "Pass --workdir=<a folder of yours>.",
            )
        ) from error
    return folder
