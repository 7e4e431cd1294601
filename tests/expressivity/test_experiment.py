import subprocess
import sys
from pathlib import Path

import jax
import pandas as pd
import pytest


@pytest.mark.slow
def test_a_small_run_writes_every_table_and_figure(tmp_path):
    form = "experiments/configs/expressivity.py:small"
    command = ["-m", "experiments.expressivity", f"--config={form}"]
    subprocess.run(
        [sys.executable, *command, f"--workdir={tmp_path}"],
        check=True,
        cwd=Path(__file__).parents[2],
    )
    table = pd.read_csv(tmp_path / "counts.csv")
    assert set(table.against) == {"depth", "width"}
    exact = dict(zip(table.widths, table.folding_exact))
    assert (exact["(8, 8)"], exact["(6, 6)"]) == (592, 198)
    assert (table.folding_exact == table.montufar_lower).all()
    theorems = pd.read_csv(tmp_path / "theorems.csv")
    assert theorems.error[:-1].max() < 1e-10 < theorems.error.iloc[-1]
    assert pd.read_csv(tmp_path / "memorization.csv").error.max() < 1e-8
    names = {p.name for p in tmp_path.iterdir()}
    pictures = {f"expressivity_{n}.png" for n in ("mosaic", "counts", "paths")}
    assert pictures | {"config.json", "counts.csv", "line.csv", "paths.csv"} <= names


def test_resnet110_has_54_blocks_in_three_stages():
    from experiments.resnet110 import resnet110_blocks

    key = jax.random.key(0)
    blocks = jax.eval_shape(lambda k: [b.params for b in resnet110_blocks(k)], key)
    assert len(blocks) == 54
    widths = [second.shape[-1] for _, second in blocks]
    assert widths == [16] * 18 + [32] * 18 + [64] * 18
    weights = sum(a.size + b.size for a, b in blocks)
    # ResNet-110's 1,727,962 parameters less stem, batch normalization and readout.
    assert weights == 1_727_962 - 432 - 2 * 16 - 4 * 18 * (16 + 32 + 64) - 650
