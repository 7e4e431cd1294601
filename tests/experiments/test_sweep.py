import os
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest

from experiments import sweep
from experiments.configs.sweep import get_config
from experiments.points import Point, run_point
from experiments.workdir import recorded
from layerwise.errors import LayerwiseError
from tests.experiments.processes import launch


ROOT = Path(__file__).parents[2]


KILLS = int(os.environ.get("KILLS", "4"))  # BUILD.md has the command for twenty
SEEDS = max(2, KILLS // 4)  # two points each, so that the sweep outlives its kills


def start(folder):
    grid = (("learning_rates", ((1e-2,), (1e-3,))), ("first_seed", range(SEEDS)))
    grid = tuple((field, tuple(values)) for field, values in grid)
    return launch("sweep", folder, f"--config.grid={grid}")


def metrics(folder):
    files = sorted(Path(folder).glob("points/*/runs/*/metrics.jsonl"))
    return {str(f.relative_to(folder)): f.read_text() for f in files}


def kill_and_continue(folder, moments):
    """Kills a sweep at random moments, and lets it end; returns how often it ran."""
    alive = 0
    for more, late in moments:
        before, process = len("".join(metrics(folder).values())), start(folder)
        # Up to two rows after it began, or somewhere in the start of its points.
        goal = before + int(3 * more) * 60
        while len("".join(metrics(folder).values())) < goal and process.poll() is None:
            time.sleep(0.01)
        time.sleep(late * (8 if goal == before else 0.5))
        alive += process.poll() is None
        process.send_signal(signal.SIGKILL)  # its workers and points are left behind
        process.wait()
    assert start(folder).wait() == 0
    return alive


@pytest.mark.slow
@pytest.mark.timeout(300 + 120 * KILLS)  # on a machine that may be busy
def test_a_sweep_that_is_killed_ends_with_the_same_rows(tmp_path, key):
    assert start(tmp_path / "whole").wait() == 0
    moments = np.asarray(jax.random.uniform(key, (KILLS, 2))).tolist()
    alive = kill_and_continue(tmp_path / "parts", moments)
    assert alive >= 0.75 * KILLS  # else it was mostly done, and nothing was tested
    assert len(metrics(tmp_path / "whole")) == 2 * SEEDS
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    got, want = (pd.read_csv(tmp_path / n / "summary.csv") for n in ("parts", "whole"))
    pd.testing.assert_frame_equal(got, want)
    assert len(got) == 2 * SEEDS


def test_points_are_the_product_of_the_grid(tmp_path):
    points = sweep.points_of(get_config("small"), tmp_path)
    assert [p.name for p in points] == [
        "learning_rates=0.01_first_seed=0",
        "learning_rates=0.01_first_seed=1",
        "learning_rates=0.001_first_seed=0",
        "learning_rates=0.001_first_seed=1",
    ]
    assert "--config.learning_rates=(0.01,)" in points[0].command
    assert "--config.schemes=('glorot',)" in points[0].command


def failing(folder):
    return Point("nothing_of_this_name", "quick", (), folder, ROOT)


def test_a_point_that_fails_is_not_done_and_one_that_is_done_does_not_run(tmp_path):
    name, status, _ = run_point(failing(tmp_path / "a"), False)
    assert (name, status) == ("a", 1)
    assert "nothing_of_this_name" in (tmp_path / "a" / "log.txt").read_text()
    assert not failing(tmp_path / "a").done
    (tmp_path / "a" / "done").touch()
    assert run_point(failing(tmp_path / "a"), False)[1] == 0


def test_the_summary_grows_with_the_points(tmp_path, monkeypatch):
    seen = []

    def completed(todo, workers, scheduler):
        for i, point in enumerate(todo):
            point.folder.mkdir(parents=True)
            (point.folder / "table.csv").write_text(f"accuracy\n{i}\n")
            (point.folder / "done").touch()
            yield point.name, 0, 1.0
            seen.append(len(pd.read_csv(tmp_path / "summary.csv")))

    monkeypatch.setattr(sweep, "_completed", completed)
    table = sweep.run(get_config("small"), tmp_path)
    assert seen == [1, 2, 3, 4]
    assert table["accuracy"].tolist() == [0, 1, 2, 3]
    assert table["config.first_seed"].tolist() == ["0", "1", "0", "1"]


def test_a_failed_point_is_named_after_all_others(tmp_path, monkeypatch):
    bad = failing(tmp_path / "bad")

    def completed(todo, workers, scheduler):
        for point in todo:
            yield run_point(point, False)

    monkeypatch.setattr(sweep, "_completed", completed)
    monkeypatch.setattr(sweep, "points_of", lambda config, folder: [bad])
    (tmp_path / "points").mkdir()
    (tmp_path / "points" / "bad").symlink_to(bad.folder)
    with pytest.raises(sweep.SweepError, match="1 of 1 failed: bad"):
        sweep.run(get_config("small"), tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "found"),
    [
        ("experiment", "train_clasifier", "Did you mean 'train_classifier'"),
        ("form", "fast", "Unknown form 'fast'"),
        ("grid", (("epoch", (1, 2)),), "epoch"),
        ("grid", (("epochs", (1, 0)),), "epochs=0"),
        ("grid", (("schemes", (("glorott",),)),), "glorot"),
    ],
)
def test_a_wrong_point_is_refused_before_any_work(field, value, found):
    config = get_config("small")
    config[field] = value
    with pytest.raises(LayerwiseError, match=found):
        sweep.check(config)


def test_rows_are_neither_lost_nor_doubled(tmp_path):
    path, calls = tmp_path / "rows.jsonl", []

    def compute(a):
        calls.append(a)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return {"double": 2 * a}

    cases = [{"a": i} for i in range(5)]
    with pytest.raises(KeyboardInterrupt):
        recorded(path, cases, compute, "test")
    path.write_text(path.read_text() + '{"a": 2, "dou')  # killed while it was written
    table = recorded(path, cases, compute, "test")
    assert table["double"].tolist() == [0, 2, 4, 6, 8]
    assert calls == [0, 1, 2, 2, 3, 4]
    assert len(path.read_text().splitlines()) == 5
