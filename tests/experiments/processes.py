"""The experiment binaries as processes, for tests that kill them."""

import os
import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).parents[2]


def launch(experiment: str, folder: Path, *given: str) -> subprocess.Popen:
    """Starts the small form of a binary."""
    config = f"--config=experiments/configs/{experiment}.py:small"
    command = [sys.executable, "-m", f"experiments.{experiment}", config, *given]
    return subprocess.Popen(
        [*command, f"--workdir={folder}"],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
    )
