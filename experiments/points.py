"""One point of a sweep: an experiment's command in a folder of its own.

Imports nothing heavy: this is what the workers of a sweep load.
"""

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Point:
    """One configuration.

    Attributes:
        experiment: Name of the binary.
        form: Of its configuration.
        overrides: Fields and what they are set to.
        folder: Its work directory.
        cwd: Where the command runs.
    """

    experiment: str
    form: str
    overrides: tuple[tuple[str, Any], ...]
    folder: Path
    cwd: Path

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.folder.name

    @property
    def command(self) -> list[str]:
        """What runs it."""
        config = f"experiments/configs/{self.experiment}.py:{self.form}"
        return [
            sys.executable,
            "-m",
            f"experiments.{self.experiment}",
            f"--config={config}",
            *(f"--config.{field}={value}" for field, value in self.overrides),
            f"--workdir={self.folder}",
        ]

    @property
    def done(self) -> bool:
        """Whether it has ended well."""
        return (self.folder / "done").exists()


def run_point(point: Point, one_thread: bool) -> tuple[str, int, float]:
    """Runs a point that is not done; returns its name, exit status and seconds.

    What it prints goes into ``log.txt`` of its folder.

    Args:
        point: Which.
        one_thread: Whether XLA may use one core only, because others run beside it.
    """
    start = time.perf_counter()
    if point.done:
        return point.name, 0, 0.0
    environment = dict(os.environ)
    if one_thread:
        flags = environment.get("XLA_FLAGS", "")
        environment["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false"
    point.folder.mkdir(parents=True, exist_ok=True)
    with (point.folder / "log.txt").open("a") as log:
        status = subprocess.run(
            point.command,
            cwd=point.cwd,
            env=environment,
            stdout=log,
            stderr=log,
            check=False,
        ).returncode
    if status == 0:
        (point.folder / "done").touch()
    return point.name, status, time.perf_counter() - start
