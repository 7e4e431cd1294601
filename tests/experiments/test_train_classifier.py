import signal
import time
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
from ml_collections import ConfigDict

from experiments import train_classifier
from experiments.configs.train_classifier import get_config
from layerwise.errors import LayerwiseError
from tests.experiments.processes import launch


def tiny(epochs=4):
    config = get_config("small")
    config.epochs = epochs
    return config


class Killed(Exception):
    pass


def metrics(folder):
    files = sorted(Path(folder).glob("runs/*/metrics.jsonl"))
    return {f.parent.name: f.read_text() for f in files}


def interrupted(config, folder, after, where, monkeypatch):
    """Runs until the call number `after` of `where`, which raises."""
    calls = iter(range(1, 1000))
    real = getattr(train_classifier, where)

    def until(*args, **kwargs):
        if next(calls) == after:
            raise Killed
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(train_classifier, where, until)
        with pytest.raises(Killed):
            train_classifier.run(config, folder)


def test_a_run_that_was_stopped_ends_with_the_same_numbers(tmp_path, monkeypatch):
    config = tiny()
    whole = tmp_path / "whole"
    table = train_classifier.run(config, whole)
    assert list(table["scheme"]) == list(config.schemes)
    assert table["median"].min() > 0.5
    parts = tmp_path / "parts"
    # Files are replaced at each start and end; json is dumped once an epoch.
    interrupted(config, parts, 1, "replace_file", monkeypatch)
    epochs = iter(range(1, 100))

    def tick():
        if next(epochs) == 2:
            raise Killed

    epoch = train_classifier.Epoch(
        train_classifier.build(config), train_classifier.load(config), config
    )
    one = train_classifier.runs_of(config)[0]
    with pytest.raises(Killed):
        train_classifier.train_one(one, config, epoch, parts / "runs" / one.name, tick)
    with (parts / "runs" / one.name / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "loss"')  # killed while it was written
    train_classifier.run(config, parts)
    assert metrics(parts) == metrics(whole)
    assert set(metrics(whole)) == {r.name for r in train_classifier.runs_of(config)}


def test_a_finished_run_is_skipped(tmp_path, monkeypatch):
    config = tiny(epochs=1)
    train_classifier.run(config, tmp_path)
    monkeypatch.setattr(train_classifier, "train_one", None)
    train_classifier.run(config, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1200)  # processes start 22 times, on a machine that may be busy
def test_kill_9_at_20_random_moments_changes_nothing(tmp_path, key):
    def start(folder):
        return launch("train_classifier", folder, "--config.epochs=40")

    def rows():
        return "".join(metrics(tmp_path / "parts").values()).count("\n")

    assert start(tmp_path / "whole").wait() == 0
    alive = 0
    for more, late in np.asarray(jax.random.uniform(key, (20, 2))).tolist():
        before, process = rows(), start(tmp_path / "parts")
        # Up to four epochs after it began, at any moment of an epoch or of the start.
        while rows() < before + int(5 * more) and process.poll() is None:
            time.sleep(0.005)
        time.sleep(late * (3 if more < 0.2 else 0.1))
        alive += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert alive >= 15  # else it was mostly done already, and nothing was tested
    assert start(tmp_path / "parts").wait() == 0
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")


@pytest.mark.parametrize(
    ("field", "value", "found"),
    [
        ("data", "digit", "The data sets are: digits"),
        ("model", "f35", "No architecture 'f35'"),
        ("schemes", ("kaming",), "kaiming"),
        ("epochs", 0, "epochs=0"),
        ("seeds", 1.5, "seeds=1.5"),
    ],
)
def test_a_wrong_configuration_is_refused_before_any_work(field, value, found):
    config = tiny()
    with config.ignore_type():
        config[field] = value
        if field == "model":
            config.model_args = ConfigDict()
    with pytest.raises(LayerwiseError, match=found):
        train_classifier.check(config)


def test_the_table_takes_each_schemes_best_rate():
    rows = [
        {"scheme": s, "rate": rate, "seed": seed, "epoch": e, "accuracy": a + e / 100}
        for s, rate, a in (("a", 0.1, 0.2), ("a", 0.01, 0.5), ("b", 0.1, 0.7))
        for seed in range(5)
        for e in range(3)
    ]
    table = train_classifier.table_of(pd.DataFrame(rows))
    assert list(table["rate"]) == [0.01, 0.1]
    assert list(table["median"]) == pytest.approx([0.52, 0.72])
    assert np.isnan(table["p"].to_numpy()[0])
    assert table["p"].to_numpy()[1] < 0.05
