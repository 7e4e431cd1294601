import signal
import time
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
from ml_collections import ConfigDict

from experiments import accuracy_table, layer_watch, train_classifier
from experiments.configs.train_classifier import get_config
from experiments.training import Sgd
from layerwise.errors import LayerwiseError
from tests.experiments.processes import launch


def tiny(epochs=4, **fields):
    config = get_config("small")
    config.update(epochs=epochs, **fields)
    return config


class Killed(Exception):
    pass


def metrics(folder, name="metrics.jsonl"):
    files = sorted(Path(folder).glob(f"runs/*/{name}"))
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


def stopped_after(config, folder, epochs):
    """Trains the first group, and is killed after some epochs, while it writes."""
    ticks = iter(range(1, 100))

    def tick():
        if next(ticks) == epochs:
            raise Killed

    epoch = train_classifier.Epoch(
        train_classifier.build(config), train_classifier.load(config), config
    )
    group = train_classifier.groups_of(config)[0]
    with pytest.raises(Killed):
        train_classifier.train_group(group, config, epoch, folder / "runs", tick)
    for run in group:
        with (folder / "runs" / run.name / "metrics.jsonl").open("a") as file:
            file.write(f'{{"epoch": {epochs + 1}, "loss"')
        if config.layers_every:
            with (folder / "runs" / run.name / layer_watch.FILE).open("a") as file:
                file.write('{"step": 1000, "loss": 1.0}\n{"step": 1020')


EVERY = pytest.mark.parametrize("every", [0, pytest.param(20, marks=pytest.mark.slow)])


@EVERY
def test_a_run_that_was_stopped_ends_with_the_same_numbers(
    every, tmp_path, monkeypatch
):
    config = tiny(layers_every=every)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    table = train_classifier.run(config, whole)
    assert list(table["scheme"]) == list(config.schemes)
    assert table["median"].min() > 0.5
    # Files are replaced at each start and end; json is dumped once an epoch.
    interrupted(config, parts, 1, "replace_file", monkeypatch)
    stopped_after(config, parts, 2)
    train_classifier.run(config, parts)
    for name in ("metrics.jsonl", layer_watch.FILE)[: 2 if every else 1]:
        assert metrics(parts, name) == metrics(whole, name)
        assert set(metrics(whole, name)) == {
            r.name for r in train_classifier.runs_of(config)
        }


def first_snapshot(config, folder):
    """Returns u's root mean square in the first layer, as measured and by hand."""
    layers = train_classifier.collect_layers(config, folder)
    first = layers[(layers["step"] == 0) & (layers["direction"] == "forward")]
    epoch = train_classifier.Epoch(
        train_classifier.build(config), train_classifier.load(config), config
    )
    group = train_classifier.groups_of(config)[0]
    params = epoch.start(group)["variables"]["params"]
    x, _ = epoch.train.take(next(epoch._batches(group, 1)))
    u = x.reshape(len(x), -1) @ params["Dense_1"]["kernel"]
    return first[(first["path"] == "Dense_1") & (first["kind"] == "u")]["rms"], np.sqrt(
        np.mean(u**2)
    )


@pytest.mark.parametrize(
    ("compute", "rtol"),
    [("float32", 1e-5), pytest.param("bfloat16", 0.01, marks=pytest.mark.slow)],
)
def test_layers_are_measured_while_training_and_drawn(compute, rtol, tmp_path):
    fields = {"epochs": 2, "schemes": ("glorot",), "compute": compute}
    config = tiny(layers_every=10, **fields)
    train_classifier.run(config, tmp_path / "on")
    layers = train_classifier.collect_layers(config, tmp_path / "on")
    assert sorted(layers["step"].unique()) == list(range(0, 44, 10))  # 22 an epoch
    assert set(layers["direction"]) == {"forward", "backward"}
    assert (tmp_path / "on" / "layers.png").stat().st_size > 10_000
    assert '"time_ratio"' in (tmp_path / "on" / "overhead.json").read_text()
    np.testing.assert_allclose(*first_snapshot(config, tmp_path / "on"), rtol=rtol)

    train_classifier.run(tiny(**fields), tmp_path / "off")
    assert metrics(tmp_path / "on") == metrics(tmp_path / "off")
    assert not metrics(tmp_path / "off", layer_watch.FILE)


@pytest.mark.slow
def test_seeds_side_by_side_train_as_alone(tmp_path):
    """Three seeds, two of them in one program, killed once; one rate diverges."""
    fields = {"schemes": ("glorot",), "seeds": 3, "learning_rates": (1e-2, 1e30)}
    alone, stacked = (tiny(layers_every=20, stacked=n, **fields) for n in (1, 2))
    train_classifier.run(alone, tmp_path / "alone")
    stopped_after(stacked, tmp_path / "stacked", 2)
    train_classifier.run(stacked, tmp_path / "stacked")
    want, got = (
        train_classifier.collect(c, tmp_path / n)
        for c, n in ((alone, "alone"), (stacked, "stacked"))
    )
    keys = ["rate", "seed", "epoch"]
    want, got = (f.sort_values(keys, ignore_index=True) for f in (want, got))
    assert len(got) == 2 * 3 * 4
    pd.testing.assert_frame_equal(got, want, rtol=1e-3)
    layers = [
        train_classifier.collect_layers(c, tmp_path / n)
        for c, n in ((alone, "alone"), (stacked, "stacked"))
    ]
    index = ["run", "step", "direction", "layer", "path", "kind"]
    a, b = (f[f["rate"] == 1e-2].set_index(index)["rms"].sort_index() for f in layers)
    pd.testing.assert_series_equal(b, a, rtol=1e-3)


def test_bfloat16_trains_with_parameters_and_loss_in_float32(tmp_path):
    config = tiny(schemes=("kaiming_fan_in",), compute="bfloat16")
    table = train_classifier.run(config, tmp_path)
    assert table["median"].item() > 0.5
    model, images = train_classifier.build(config), train_classifier.load(config)
    sgd, wide = Sgd(model, compute="bfloat16"), Sgd(model)
    state = sgd.start(model.init(jax.random.key(0), images.train.x[:2]))
    rows, rate = np.arange(64), np.float32(1e-2)
    new, loss = sgd.step(state, images.train, rows, rate)
    _, exact = wide.step(state, images.train, rows, rate)
    assert {leaf.dtype for leaf in jax.tree.leaves((new, loss))} == {np.dtype("f4")}
    assert loss != exact  # eight bits of mantissa are not twenty-four
    np.testing.assert_allclose(loss, exact, rtol=0.02)


def test_a_finished_run_is_skipped(tmp_path, monkeypatch):
    config = tiny(epochs=1)
    train_classifier.run(config, tmp_path)
    monkeypatch.setattr(train_classifier, "train_group", None)
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
        ("first_seed", -1, "first_seed=-1"),
        ("learning_rates", (), r"learning_rates=\(\)"),
        ("learning_rates", ("fast",), "learning_rates='fast'"),
        ("schemes", (), r"schemes=\(\)"),
        ("schemes", ("asv_forward:x",), "cap 'x'"),
        ("momentum", 1.0, "momentum=1.0"),
        ("weight_decay", -1e-4, "weight_decay=-0.0001"),
        ("compute", "float16", "compute='float16'"),
        ("stacked", 0, "stacked=0"),
        ("layers_every", -1, "layers_every=-1"),
        ("layers_every", 2.5, "layers_every=2.5"),
        ("batch", 2000, "there are 1437 images"),
        ("model_args", {"input_shape": (8, 8, 3), "num_classes": 9}, "9 outputs"),
        ("model_args", {"width": 3}, "cannot be built"),
        ("model", "no_module_of_this:Name", "cannot be imported"),
    ],
)
def test_a_wrong_configuration_is_refused_before_any_work(field, value, found):
    config = tiny()
    with config.ignore_type():
        config[field] = ConfigDict(value) if isinstance(value, dict) else value
        if field == "model":
            config.model_args = ConfigDict()
    with pytest.raises(LayerwiseError, match=found):
        train_classifier.check(config)


def test_the_table_takes_each_schemes_best_rate():
    rows = [
        {
            "scheme": s,
            "rate": rate,
            "seed": seed,
            "epoch": e,
            "accuracy": a + (2 - e) * seed / 100,
        }
        for s, rate, a in (("a", 0.1, 0.2), ("a", 0.01, 0.5), ("b", 0.1, 0.7))
        for seed in range(5)
        for e in range(3)
    ]
    frame = pd.DataFrame(rows)
    table = accuracy_table.table_of(frame)
    assert list(table["rate"]) == [0.01, 0.1]
    assert list(table["median"]) == pytest.approx([0.54, 0.74])  # of the first epoch
    assert list(table["Q3"]) == pytest.approx([0.56, 0.76])
    assert list(table["last median"]) == pytest.approx([0.5, 0.7])
    assert len(accuracy_table.rates_of(frame)) == 3
    p = accuracy_table.rank_tests(frame).to_numpy()
    assert np.isnan(np.diag(p)).all()
    assert p[0, 1] == p[1, 0] < 0.05


def test_the_full_form_is_the_papers_setting():
    config = get_config("full")
    assert (config.data, config.model, config.model_args.to_dict()) == (
        "fungi10", "f34", {"width": 64, "image_size": 224},
    )  # fmt: skip
    assert (config.seeds, config.epochs, config.batch) == (10, 300, 64)
    assert config.learning_rates == (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
    model = train_classifier.build(config)
    x = np.ones((2, *model.input_shape), np.float32)
    train_classifier.check_schemes(model, x, config.schemes)
