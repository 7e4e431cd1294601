r"""Many configurations of one experiment, side by side, with dask.distributed.

Every configuration runs as the experiment's own command, in a folder of its own under
``points/``. What is done is skipped, and what was killed continues as the experiment
does; ``summary.csv`` holds the tables of all that is done so far, with the swept fields
in front.

    python -m experiments.sweep \
        --config=experiments/configs/sweep.py:quick --workdir=runs/sweep

Workers are processes of this machine, no more than it has cores; with
``--scheduler=tcp://host:8786`` they are those of a running cluster, which must see the
same folders.
"""

import functools
import importlib
import itertools
import logging
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from absl import flags
from ml_collections import ConfigDict
from tqdm import tqdm

from experiments.launch import check_choices, check_counts, launch
from experiments.points import Point, run_point
from experiments.workdir import replace_file
from layerwise.errors import InvalidArgumentError, LayerwiseError, message


class SweepError(LayerwiseError, RuntimeError):
    """Some configurations of a sweep failed."""


def points_of(config: ConfigDict, folder: Path) -> list[Point]:
    """Returns every configuration of a sweep, as a point with its folder."""
    fields = [field for field, _ in config.grid]
    points = []
    for values in itertools.product(*(values for _, values in config.grid)):
        chosen = tuple(zip(fields, values, strict=True))
        said = "_".join(f"{f.split('.')[-1]}={_short(v)}" for f, v in chosen)
        name = said if len(said) < 100 else f"{said[:90]}_{zlib.crc32(said.encode()):x}"
        points.append(
            Point(
                config.experiment,
                config.form,
                (*config.fixed, *chosen),
                (folder / "points" / name).resolve(),
                Path.cwd(),
            )
        )
    return points


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return "+".join(map(_short, value))
    return f"{value:g}" if isinstance(value, float) else str(value).replace("/", "-")


def experiments() -> list[str]:
    """Returns the names of the experiments that can be swept."""
    return sorted(
        path.stem
        for path in (Path(__file__).parent / "configs").glob("[a-z]*.py")
        if path.stem != "sweep"
    )


def check(config: ConfigDict) -> None:
    """Raises what is wrong with the configuration, or with that of any point."""
    check_counts(config, "workers")
    check_choices("experiment", [config.experiment], experiments())
    module = importlib.import_module(f"experiments.{config.experiment}")
    configs = importlib.import_module(f"experiments.configs.{config.experiment}")
    for point in points_of(config, Path()):
        try:
            own = configs.get_config(config.form)
            own.lock()
            for field, value in point.overrides:
                *outer, last = field.split(".")
                functools.reduce(getattr, outer, own)[last] = value
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InvalidArgumentError(
                message(
                    f"{point.name}: {error}",
                    f"It is no configuration of {config.experiment}.",
                    "Correct form, fixed and grid in experiments/configs/sweep.py.",
                )
            ) from error
        module.check(own)


def run(config: ConfigDict, folder: Path, scheduler: str | None = None) -> pd.DataFrame:
    """Runs what is not done yet and returns all tables as one.

    Args:
        config: The configuration.
        folder: The work directory.
        scheduler: Address of a dask scheduler; workers of this machine if None.

    Raises:
        SweepError: If a configuration failed, once all others are done.
    """
    points = points_of(config, folder)
    todo, failed = [p for p in points if not p.done], []
    workers = min(config.workers, os.cpu_count() or 1, max(len(todo), 1))
    if todo:
        with tqdm(
            total=len(points), initial=len(points) - len(todo), desc="sweep"
        ) as bar:
            for name, status, seconds in _completed(todo, workers, scheduler):
                failed += [name] if status else []
                said = f"FAILED with {status}" if status else "done"
                bar.write(f"{name}: {said} after {seconds:.0f} s")
                bar.update()
                bar.set_postfix(failed=len(failed))
                summary([p for p in points if p.done], folder)
    if failed:
        log = folder / "points" / failed[0] / "log.txt"
        end = log.read_text().strip().splitlines()[-3:]
        raise SweepError(
            message(
                f"{len(failed)} of {len(points)} failed: {', '.join(failed)}.",
                "The first one's log ends with: " + " / ".join(end),
                f"See {log}; the same command runs what is not done again.",
            )
        )
    table = summary(points, folder)
    print(table.to_string(index=False))
    return table


def _completed(
    todo: list[Point], workers: int, scheduler: str | None
) -> Iterator[tuple[str, int, float]]:
    """Yields what `run_point` returns, as points end."""
    from distributed import Client, LocalCluster, as_completed

    logging.getLogger("distributed").setLevel(logging.WARNING)
    own = None
    if scheduler is None:
        own = LocalCluster(
            n_workers=workers, threads_per_worker=1, dashboard_address=None
        )
    with Client(own if own is not None else scheduler) as client:
        futures = [
            client.submit(run_point, p, workers > 1, pure=False, key=p.name)
            for p in todo
        ]
        for future in as_completed(futures):
            yield future.result()
    if own is not None:
        own.close()


def summary(points: list[Point], folder: Path) -> pd.DataFrame:
    """Writes the tables of points below each other, swept fields in front."""
    tables = []
    for point in points:
        table = pd.read_csv(point.folder / "table.csv")
        for field, value in reversed(point.overrides):
            name = f"config.{field}"
            table.insert(0, name, [_short(value)] * len(table))
        tables.append(table)
    whole = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
    replace_file(folder / "summary.csv", whole.to_csv(index=False))
    return whole


if __name__ == "__main__":
    address = flags.DEFINE_string("scheduler", None, "Address of a dask scheduler.")
    launch("sweep", check, lambda config, folder: run(config, folder, address.value))
