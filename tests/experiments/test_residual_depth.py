import numpy as np
import pandas as pd
import pytest

from experiments import residual_depth
from experiments.configs.residual_depth import get_config
from experiments.launch import execute


def small():
    config = get_config("small")
    config.rows = ("taki",)
    return config


def start(config, folder):
    return execute(residual_depth.check, residual_depth.run, config, folder)


def never(*args, **kwargs):
    raise AssertionError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten blocks in place of a hundred, one row, one rate."""
    path = tmp_path_factory.mktemp("depth") / "run"
    start(small(), path)
    return path


@pytest.mark.slow
def test_a_run_writes_tables_and_figure(folder):
    assert {p.name for p in folder.iterdir()} == {
        "config.json", "runs.jsonl", "laws.jsonl", "table.csv", "laws.csv",
        "residual_depth.png", "lock",
    }  # fmt: skip
    assert "trained" in (folder / "table.csv").read_text()


@pytest.mark.slow
def test_a_finished_run_computes_nothing(folder, monkeypatch):
    before = (folder / "table.csv").read_text()
    monkeypatch.setattr(residual_depth, "train_row", never)
    monkeypatch.setattr(residual_depth, "simulate", never)
    start(small(), folder)
    assert (folder / "table.csv").read_text() == before


@pytest.mark.slow
def test_a_row_lost_to_a_kill_is_computed_again(folder, monkeypatch):
    record = folder / "laws.jsonl"
    lines = record.read_text().splitlines(keepends=True)
    record.write_text("".join(lines[:-1]) + lines[-1][:40])
    monkeypatch.setattr(residual_depth, "train_row", never)
    start(small(), folder)
    assert record.read_text().splitlines(keepends=True) == lines


def test_outcomes():
    nothing = np.log(10)
    falling = np.linspace(nothing, 0.1, 100)
    assert residual_depth.outcome(falling) == "trained"
    assert residual_depth.outcome(np.full(100, nothing)) == "neither"
    assert residual_depth.outcome(np.full(100, 4 * nothing)) == "diverged"
    assert residual_depth.outcome(np.append(falling, np.nan)) == "diverged"


@pytest.mark.slow
def test_the_laws_are_those_of_the_theory():
    def first(name):
        r = residual_depth.law_of(get_config("quick"), name).r
        assert r is not None
        return r[0]

    assert first("plain, b = 2") == pytest.approx(1)
    assert first("W f, c = 2") == pytest.approx((1 + 1 / 100) ** 100)
    # The product over blocks, by hand: Q_k = 1 + 2 Var[f] k, and E[f'^2] = 1/2.
    variance = 0.5 - 0.5 / np.pi
    factors = 1 + 1 / (1 + 2 * variance * np.arange(100))
    assert first("BN, relu") == pytest.approx(np.prod(factors), rel=1e-6)


@pytest.mark.slow
def test_a_hundred_blocks(tmp_path):
    """He without normalization diverges at every rate; c/(nL) and BN train."""
    config = get_config("quick")
    config.rows = ("kaiming_fan_in", "taki", "kaiming_fan_in+bn")
    frame = start(config, tmp_path / "run").loc["mlp"]
    assert (frame.loc["kaiming_fan_in"] == "diverged").all()
    for row in ("taki", "kaiming_fan_in+bn"):
        assert frame.loc[row].str.startswith("trained").any()
    table = pd.read_csv(tmp_path / "run" / "laws.csv")
    gap, noise = table["gap"].abs(), 4 * table["sem"] / table["theory"]
    assert (gap < np.maximum(0.05, noise)).all()
    assert (table[table["law"].str.startswith("BN")]["gap"].abs() < 0.05).all()
