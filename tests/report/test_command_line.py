"""The command line, run in this process; one test runs it as a program."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from layerwise import cli, command_line


MODELS = """
import flax.linen as nn
from flax import nnx
import jax

class Deep(nn.Module):
    depth: int
    gain: float = 2.0

    @nn.compact
    def __call__(self, x):
        kernel = nn.initializers.variance_scaling(self.gain, "fan_in", "normal")
        for _ in range(self.depth):
            x = nn.relu(nn.Dense(32, kernel_init=kernel)(x))
        return nn.Dense(4)(x)

class Pair(nn.Module):
    @nn.compact
    def __call__(self, tokens, x, train: bool):
        x = nn.Embed(20, 16)(tokens) + nn.Dense(16)(x)[:, None]
        return nn.Dense(4)(nn.relu(nn.Dense(16)(x)))

class Nnx(nnx.Module):
    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.a = nnx.Linear(8, width, rngs=rngs)
        self.b = nnx.Linear(width, 4, rngs=rngs)

    def __call__(self, x):
        return self.b(jax.nn.relu(self.a(x)))

class Words(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        return nn.Dense(4)(nn.relu(nn.Dense(8)(nn.Embed(20, 8)(tokens))))

class Even(Nnx):
    def __init__(self, width: int, *, rngs: nnx.Rngs):
        if width % 2:
            raise ValueError("width must be even")
        super().__init__(width, rngs=rngs)

def factory(depth):
    return Deep(depth=depth)

def nothing():
    return None

instance = Deep(depth=3)
number = 3
"""


@pytest.fixture
def models(tmp_path, monkeypatch):
    path = tmp_path / "their_models.py"
    path.write_text(MODELS)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield str(path)
    sys.modules.pop("their_models", None)


def test_a_sick_model_exits_with_1_and_writes_everything(models, tmp_path, capsys):
    files = {k: tmp_path / f"out.{k}" for k in ("html", "json", "markdown", "csv")}
    flags = [x for k, f in files.items() for x in (f"--{k}", str(f))]
    args = ["--args", '{"depth": 7, "gain": 0.5}', "--input", "4,16", "--draws", "4"]
    flags += ["--predict", "recursion", "--tolerance", "50"]
    status = cli.main(["report", f"{models}:Deep", *args, *flags, "--quiet"])
    out = capsys.readouterr()
    assert status == 1, out
    assert "SICK" in out.out
    assert "tolerance x50" in out.out
    assert "tolerance x50" in files["html"].read_text()
    assert "vanishing forward" in out.out
    assert "Traceback" not in out.err
    assert json.loads(files["json"].read_text())["verdict"] == "sick"
    assert files["markdown"].read_text().startswith("**Deep: sick**")
    assert "predicted by eq. (4), (5)" in files["markdown"].read_text()
    assert files["csv"].read_text().startswith("layer,path,kind,direction,draw")
    page = files["html"].read_text()
    assert 'class="layers"' in page
    assert len(page) < 2e6


@pytest.mark.slow
def test_two_inputs_one_of_integers_and_keyword_arguments(models, capsys):
    status = cli.main([
        "report", f"{models}:Pair", "--input", "int:4,6:vocab=20", "--input", "4,8",
        "--kwargs", '{"train": false}', "--draws", "2", "--quiet", "--predict", "none",
    ])  # fmt: skip
    out = capsys.readouterr()
    assert status == 1, out
    assert "UNDECIDED (2 networks" in out.out


@pytest.mark.parametrize("name", ["Deep", "factory", "instance", "Nnx"])
def test_classes_factories_and_instances_are_models(models, name):
    given = {"Deep": '{"depth": 2}', "factory": "[2]", "Nnx": '{"width": 8}'}.get(name)
    made = command_line.load_model(f"{models}:{name}", given, 0, "layerwise report x:y")
    assert callable(made)


WRONG = {
    "no colon": (["report", "nonsense"], "package.module:nonsense"),
    "no module": (["report", "no_such_package.models:Net"], "There is no module"),
    "no file": (["report", "missing.py:Net"], "There is no file missing.py"),
    "no such name": (["report", "zoo:resnet5"], "Did you mean 'resnet50'?"),
    "arguments missing": (
        ["report", "flax.linen:Dense", "--input", "4,8"],
        "layerwise report flax.linen:Dense --args '{\"features\": 64}'",
    ),
    "arguments not JSON": (["report", "zoo:mlp", "--args", "{x"], "is not JSON"),
    "no input": (
        ["report", "flax.linen:Dense", "--args", "[4]"],
        "layerwise report flax.linen:Dense --args '[4]' --input 8,224,224,3",
    ),
    "bad input": (["report", "zoo:mlp", "--input", "4,x"], "--input 8,224,224,3"),
    "integers without a range": (
        ["report", "zoo:mlp", "--input", "int:4,8"],
        "--input int:4,8:vocab=1000",
    ),
    "unknown scheme": (["report", "zoo:mlp", "--scheme", "hee"], "The schemes are"),
    "no model": (["report", "flax.linen:relu"], "relu(x):"),
    "array missing": (["report", "zoo:mlp", "--input", "no.npy"], "--input array.npy"),
    "vocabulary of floats": (
        ["report", "zoo:mlp", "--input", "4,8:vocab=5"],
        "Type: --input int:4,8:vocab=5",
    ),
    "one unknown scheme of two": (
        ["compare", "zoo:mlp", "--scheme", "lecun", "--scheme", "kaimin_fan_in"],
        "Type: layerwise compare zoo:mlp --scheme kaiming_fan_in",
    ),
    "a folder for a file": (["report", "zoo:mlp", "--html", "."], ". is a folder"),
    "no kind of figure": (
        ["compare", "zoo:mlp", "--figure", "curves.foo"],
        "--figure curves.png",
    ),
    "layers selected for no file": (
        ["report", "zoo:mlp", "--select", "Dense_0"],
        "--select 'Dense_0' --html report.html",
    ),
    "wrong shape": (
        ["report", "zoo:f34", "--input", "4,8"],
        "Type: layerwise report zoo:f34 --input [DTYPE:]SHAPE",
    ),
    "arguments of the call by position": (
        [
            "report",
            "flax.linen:Dense",
            "--args",
            "[4]",
            "--input",
            "4,8",
            "--kwargs",
            "[1]",
        ],
        "--kwargs '{\"train\": false}'",
    ),
    "no folder": (
        ["report", "zoo:mlp", "--html", "no/such/folder/report.html"],
        "Type: mkdir -p no/such/folder",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_on_one_screen_with_status_2(name, capsys):
    arguments, words = WRONG[name]
    assert cli.main(arguments) == 2
    text = capsys.readouterr().err
    assert words in text
    assert "Traceback" not in text
    assert len(text.splitlines()) <= 12


def test_an_input_that_was_not_given(models, capsys):
    arguments = ["report", f"{models}:Pair", "--input", "int:4,6:vocab=20"]
    assert cli.main(arguments) == 2
    text = capsys.readouterr().err
    assert "missing a required argument: 'x'" in text
    assert f"layerwise report {models}:Pair --input SHAPE --input SHAPE" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("Deep --args {'gain':1}", ['--args \'{"depth": 64, "gain": 1}\'']),
        ("Deep --args {'depht':3}", ["Did you mean 'depth'?", "'{\"depth\": 3}'"]),
        ("Even --args [7]", ["ValueError: width must be even", "their_models.py:"]),
        ("number", ["object of type int", "Type: layerwise report"]),
        ("nothing", ["object of type NoneType"]),
        (
            "instance --input 4,8 --input 4,8",
            ["too many", "models.py:instance --input"],
        ),
        ("instance --input 4,8 --kwargs {'x2':1}", ["'x2'", "--input SHAPE\n"]),
        ("Nnx --args [8] --input 4,9", ["their_models.py:", "--args '[8]' --input"]),
        pytest.param(
            "Words --input int:4,6:vocab=90 --draws 1 --predict none",
            ["Embed_0: the inputs ask for row", "--input int:4,6:vocab=20"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_a_model_does_not_take(models, arguments, words, capsys):
    typed = arguments.replace("'", '"').split()
    assert cli.main(["report", f"{models}:{typed[0]}", *typed[1:]]) == 2
    text = capsys.readouterr().err
    for word in words:
        assert word in text
    assert "Type: " in text
    assert "Traceback" not in text


def test_a_file_in_which_nothing_would_be(models, tmp_path, capsys):
    """A glob that matches no layer."""
    page = tmp_path / "page.html"
    arguments = ["report", f"{models}:instance", "--input", "4,8", "--draws", "1"]
    arguments += ["--predict", "none", "--select", "Conv*", "--html", str(page)]
    assert cli.main(arguments) == 2
    assert "The paths are Dense_0, Dense_1" in capsys.readouterr().err
    assert not page.exists()


def test_describe_passes_on_what_a_call_needs(models, capsys):
    arguments = ["--input", "int:4,6:vocab=20", "--input", "4,8"]
    arguments += ["--kwargs", '{"train": false}']
    assert cli.main(["describe", f"{models}:Pair", *arguments]) == 0
    assert "Dense_2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("import not_installed_anywhere", "pip install not_installed_anywhere"),
        ("1 / 0", "ZeroDivisionError"),
        ("def f(:", "broken.py:1)"),
        ("raise SystemExit('usage')", "SystemExit: usage"),
    ],
)
def test_a_module_that_fails_to_import(tmp_path, broken, words, capsys, monkeypatch):
    path = tmp_path / "broken.py"
    path.write_text(broken)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert cli.main(["report", f"{path}:Net", "--input", "2,3"]) == 2
    text = capsys.readouterr().err
    assert words in text
    assert "Traceback" not in text
    assert cli.main(["report", f"{path}:Net", "--input", "2,3", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_argparse_errors_exit_with_2(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["report"])
    assert caught.value.code == 2
    assert "required: model" in capsys.readouterr().err
    for flag, value, words in (
        ("--tolerance", "much", "much is not a factor above 1"),
        ("--draws", "0", "0 is not a number of networks"),
        ("--draws", "-3", "-3 is not a number of networks"),
    ):
        with pytest.raises(SystemExit) as caught:
            cli.main(["report", "zoo:mlp", flag, value])
        assert caught.value.code == 2
        text = capsys.readouterr().err
        assert words in text
        assert "Type: layerwise report --help" in text


def test_inputs(tmp_path):
    x = command_line.make_inputs(["4,3"], 0)
    assert x.shape == (4, 3)
    assert x.dtype == jnp.float32
    tokens, half = command_line.make_inputs(["int:64,3:vocab=5", "bfloat16:2"], 0)
    assert set(np.unique(tokens)) == set(range(5))
    assert half.dtype == jnp.bfloat16
    np.save(tmp_path / "x.npy", np.ones((2, 5)))
    assert command_line.make_inputs([str(tmp_path / "x.npy")], 0).shape == (2, 5)


@pytest.mark.slow
def test_as_a_program_in_a_folder_of_the_user(models):
    """A model of another package, by its module's name, and the other commands."""
    path = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}

    def typed(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "layerwise.cli", *arguments],
            cwd=Path(models).parent, env=environment, capture_output=True, text=True,
        )  # fmt: skip

    deep = ["their_models:Deep", "--args", '{"depth": 4}', "--input", "8,32"]
    done = typed("report", *deep, "--draws", "8")
    assert done.returncode == 0, done.stderr
    assert "HEALTHY" in done.stdout
    done = typed("compare", *deep, "--draws", "4", "--scheme", "lecun")
    assert done.returncode == 0, done.stderr
    done = typed("describe", *deep)
    assert done.returncode == 0, done.stderr
    assert "Dense_0" in done.stdout
    done = typed("coverage", *deep)
    assert done.returncode == 0, done.stderr
    assert "equations" in done.stdout
