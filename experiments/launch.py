"""How every experiment starts: its flags, its checks, and errors on one screen.

An experiment is a module with ``check(config)``, which raises what is wrong with a
configuration before any work is done, and ``run(config, folder)``, which does the work
in a folder of its own and returns the table.
"""

import contextlib
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags
from rich.console import Console

from experiments.workdir import alone_in, open_workdir
from layerwise.errors import (
    InvalidArgumentError,
    LayerwiseError,
    did_you_mean,
    message,
)


Check = Callable[[ConfigDict], Any]
Run = Callable[[ConfigDict, Path], pd.DataFrame]


def execute(check: Check, run: Run, config: ConfigDict, workdir: str) -> pd.DataFrame:
    """Checks a configuration, opens its folder and runs it there.

    Raises:
        LayerwiseError: What is wrong with the configuration or the folder; no work has
            been done then, and no folder has been made.
    """
    check(config)
    folder = open_workdir(workdir, config)
    with alone_in(folder):
        return run(config, folder)


def launch(name: str, check: Check, run: Run) -> None:
    """Parses the flags of the binary `name`, runs it, and ends the process.

    Exits with 2, and one message, if the flags or the configuration are wrong.
    """
    default = f"experiments/configs/{name}.py:quick"
    with _wrong_flags_end_it():  # the overrides are read here already
        chosen = config_flags.DEFINE_config_file("config", default, "What to run.")
    workdir = flags.DEFINE_string("workdir", f"runs/{name}", "Where to write.")

    def main(argv: list[str]) -> None:
        del argv
        logging.set_verbosity(logging.WARNING)  # orbax tells of every step of a save
        try:
            execute(check, run, chosen.value, workdir.value)
        except LayerwiseError as error:
            _give_up(str(error))
        print(f"\nWrote {workdir.value}.")

    app.run(main, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
    with _wrong_flags_end_it():
        rest = flags.FLAGS(argv)
        flags.FLAGS.config.to_dict()
        return rest


@contextlib.contextmanager
def _wrong_flags_end_it() -> Iterator[None]:
    """Ends the process with one message where ml_collections raises bare errors."""
    try:
        yield
    except AttributeError as error:
        _give_up(
            f"The configuration has no field {str(error).strip(chr(34))}.\n"
            "Only the fields that a configuration file sets can be set again.\n"
            "Pass one that is in the file, as in --config.seeds=3."
        )
    except (flags.Error, OSError) as error:
        # A configuration file's own error comes with its traceback; the end says it.
        said = str(error).rsplit("Error: ", 1)[-1].strip()
        _give_up(f"{said}\nPass --help to see the flags.")


def _give_up(text: str) -> None:
    Console(stderr=True).print(text, style="red", highlight=False, soft_wrap=True)
    sys.exit(2)


def check_counts(config: ConfigDict, *names: str, least: int = 1) -> None:
    """Raises if a field, or an entry of it, is not a whole number, at least `least`."""
    for name, entry in _entries(config, names):
        if isinstance(entry, bool) or not isinstance(entry, int) or entry < least:
            raise InvalidArgumentError(
                message(
                    f"{name}={entry!r}.",
                    f"It is a count: a whole number, at least {least}.",
                    f"Pass --config.{name}=10.",
                )
            )


def check_positive(config: ConfigDict, *names: str) -> None:
    """Raises if a field, or an entry of it, is not a positive number."""
    for name, entry in _entries(config, names):
        if not _is_number(entry) or not 0 < entry < math.inf:
            raise InvalidArgumentError(
                message(
                    f"{name}={entry!r}.",
                    "It is a rate or a size: a positive number.",
                    f"Pass --config.{name} with positive numbers.",
                )
            )


def _entries(config: ConfigDict, names: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Yields the fields, and the entries of those that have some."""
    for name in names:
        value = config[name]
        many = isinstance(value, tuple | list) and len(value) > 0
        yield from ((name, entry) for entry in (value if many else (value,)))


def check_below(config: ConfigDict, limit: float, *names: str) -> None:
    """Raises if a field is not a number of at least 0 and below the limit."""
    for name in names:
        value = config[name]
        if not _is_number(value) or not 0 <= value < limit:
            raise InvalidArgumentError(
                message(
                    f"{name}={value!r}.",
                    f"It is a number of at least 0 and below {limit:g}.",
                    f"Pass --config.{name}=0.",
                )
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_choices(name: str, chosen: Iterable[Any], known: Iterable[str]) -> None:
    """Raises if one of the values chosen for a field is not among the known ones."""
    options = list(known)
    for value in some(name, chosen):
        if value not in options:
            raise InvalidArgumentError(
                message(
                    f"{name}={value!r}.{did_you_mean(str(value), options)}",
                    f"The choices are {', '.join(options)}.",
                    f"Pass --config.{name} with some of them.",
                )
            )


def some(name: str, chosen: Iterable[Any]) -> list[Any]:
    """Returns the values chosen for a field; raises if there are none."""
    values = list(chosen)
    if not values:
        raise InvalidArgumentError(
            message(
                f"{name}=().",
                "With none of them there is nothing to do.",
                f"Pass --config.{name} with at least one.",
            )
        )
    return values
