import os
import signal
import subprocess
import sys
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


ROOT = Path(__file__).parents[2]


def tiny(epochs=4):
    """A network of one hidden layer on 8x8 digits: tenths of a second an epoch."""
    config = get_config("quick")
    config.model = "mlp"
    config.model_args = ConfigDict({"input_shape": (8, 8, 3), "widths": (16,)})
    config.schemes = ("kaiming_fan_in", "glorot")
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
def test_kill_9_at_random_moments_changes_nothing(tmp_path):
    script = tmp_path / "go.py"
    script.write_text(
        "import sys\n"
        f"sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n"
        "from pathlib import Path\n"
        "from experiments import train_classifier\n"
        "import importlib.util\n"
        f"spec = importlib.util.spec_from_file_location('t', {__file__!r})\n"
        "t = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(t)\n"
        "train_classifier.run(t.tiny(epochs=40), Path(sys.argv[1]))\n"
    )

    def start(folder):
        return subprocess.Popen(
            [sys.executable, str(script), str(folder)],
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            stderr=subprocess.DEVNULL,
        )

    began = time.monotonic()
    assert start(tmp_path / "whole").wait() == 0
    length = time.monotonic() - began
    for moment in np.asarray(jax.random.uniform(jax.random.key(0), (6,))):
        process = start(tmp_path / "parts")
        time.sleep(float(moment) * length)
        process.send_signal(signal.SIGKILL)
        process.wait()
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
