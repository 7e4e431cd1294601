"""Every binary refuses what is wrong with one clear error, before any work starts."""

import importlib
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from ml_collections import ConfigDict

from experiments import launch
from experiments.launch import execute
from experiments.sweep import experiments
from layerwise.errors import InvalidArgumentError, LayerwiseError


ROOT = Path(__file__).parents[2]
BINARIES = [*experiments(), "sweep"]


def quick(name):
    module = importlib.import_module(f"experiments.{name}")
    config = importlib.import_module(f"experiments.configs.{name}").get_config("quick")
    return module, config


def never(*args):
    raise AssertionError("work was done")


BAD_VALUES = {
    "degradation": ("seeds", 0, "seeds=0"),
    "depth_record": ("learning_rates", (0.1, -1.0), "learning_rates=-1.0"),
    "expressivity": ("networks", 0, "networks=0"),
    "lesion": ("steps", 0, "steps=0"),
    "residual_depth": ("depth", -3, "depth=-3"),
    "sweep": ("workers", 0, "workers=0"),
    "train_classifier": ("epochs", 0, "epochs=0"),
    "variance_curves": ("draws", 0, "draws=0"),
}
UNKNOWN_NAMES = {
    "degradation": ("networks", ("plane",), "Did you mean 'plain'"),
    "depth_record": ("activations", ("tan",), "Did you mean 'tanh'"),
    "lesion": ("networks", ("resnet",), "choices are residual, plain"),
    "residual_depth": ("rows", ("kaming_fan_in",), "Did you mean 'kaiming_fan_in'"),
    "sweep": ("experiment", "lesions", "Did you mean 'lesion'"),
    "train_classifier": ("schemes", ("asv",) * 2 + ("asw",), "Unknown scheme 'asw'"),
    "variance_curves": ("schemes", ("glorott",), "Did you mean 'glorot'"),
}


def refused(name, field, value, said, folder):
    module, config = quick(name)
    with config.ignore_type():
        config[field] = value
    with pytest.raises(LayerwiseError, match=said) as error:
        execute(module.check, never, config, folder / "new")
    assert len(str(error.value).splitlines()) == 3  # found, why, what to type
    assert not (folder / "new").exists()


@pytest.mark.parametrize("name", BINARIES)
def test_a_bad_value(name, tmp_path):
    refused(name, *BAD_VALUES[name], tmp_path)


@pytest.mark.parametrize("name", sorted(UNKNOWN_NAMES))
def test_an_unknown_model_scheme_or_choice(name, tmp_path):
    refused(name, *UNKNOWN_NAMES[name], tmp_path)


@pytest.mark.parametrize("name", ["train_classifier", "variance_curves"])
def test_an_unknown_model(name, tmp_path):
    refused(name, "model", "f35", "No architecture 'f35'", tmp_path)


@pytest.mark.parametrize("name", BINARIES)
def test_a_folder_of_another_configuration(name, tmp_path):
    _, config = quick(name)
    nothing, table = (lambda _: None), (lambda *_: pd.DataFrame())
    execute(nothing, table, config, tmp_path / "run")
    execute(nothing, table, config, tmp_path / "run")  # its own is no other's
    other = ConfigDict({**config.to_dict(), "new_field": 1})
    with pytest.raises(InvalidArgumentError, match="run of another configuration"):
        execute(nothing, never, other, tmp_path / "run")


@pytest.mark.parametrize("name", BINARIES)
def test_an_unknown_form(name):
    configs = importlib.import_module(f"experiments.configs.{name}")
    with pytest.raises(
        ValueError, match=r"Unknown form 'fast'[^$]*Its forms are quick"
    ):
        configs.get_config("fast")


def start(*given):
    command = [sys.executable, "-m", "experiments.depth_record", *given]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--config.nothing=3", "has no field 'nothing'"),
        ("--config.width=wide", "invalid literal"),
        ("--config.width=0", "width=0"),
        ("--config=experiments/configs/depth_record.py:fast", "Unknown form 'fast'"),
        ("--config=experiments/configs/nothing.py", "No such file"),
    ],
)
def test_wrong_flags_end_the_process_with_one_message(given, said, tmp_path):
    done = start(given, f"--workdir={tmp_path}/run")
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_experiments_define_no_flags_when_they_are_imported():
    from absl import flags

    for name in BINARIES:
        importlib.import_module(f"experiments.{name}")
    assert "config" not in flags.FLAGS
    assert "workdir" not in flags.FLAGS


def test_counts_are_whole_numbers():
    for bad in (0, -1, 1.0, True, "3"):
        with pytest.raises(InvalidArgumentError, match="It is a count"):
            launch.check_counts(ConfigDict({"n": bad}), "n")
    launch.check_counts(ConfigDict({"n": 1}), "n")
