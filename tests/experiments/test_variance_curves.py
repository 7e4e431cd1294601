import json

import numpy as np
import pandas as pd
import pytest

import layerwise as lw
from experiments import variance_curves
from experiments.configs.variance_curves import get_config
from experiments.launch import execute
from experiments.photos import photo_crops
from layerwise.errors import InvalidArgumentError


def test_photo_crops_are_normalized_and_differ():
    x = photo_crops(4, 64)
    assert x.shape == (4, 64, 64, 3)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(wide.mean((1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(np.square(wide).mean((1, 2)), 1, rtol=1e-5)
    assert len(np.unique(x[:, 5, 5, 0])) == 4
    assert photo_crops(1, 500).shape == (1, 500, 500, 3)  # larger than the photo


def small():
    config = get_config("small")
    config.model_args.image_size = 32
    config.model_args.width = 4
    config.draws = 2
    config.schemes = ("kaiming_fan_in", "asv_backward:3")
    return config


def start(config, folder):
    return execute(variance_curves.check, variance_curves.run, config, folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, start(small(), folder)


@pytest.mark.slow
def test_writes_what_it_says(finished):
    folder, table = finished
    assert {p.name for p in folder.iterdir()} == {
        "config.json", "table.csv", "variance_curves.png", "variance_curves.svg",
        "lock",
    }  # fmt: skip
    assert json.loads((folder / "config.json").read_text())["draws"] == 2
    written = pd.read_csv(folder / "table.csv")
    assert len(written) == len(table)
    assert set(written["scheme"]) == {"kaiming_fan_in", "asv_backward:3"}
    assert set(written["direction"]) == {"forward", "backward"}
    assert (folder / "variance_curves.png").stat().st_size > 10_000


@pytest.mark.slow
def test_refuses_a_folder_of_another_configuration(finished):
    folder, _ = finished
    other = small()
    other.draws = 3
    with pytest.raises(InvalidArgumentError, match="another configuration"):
        start(other, folder)


@pytest.mark.slow
def test_a_class_of_ones_own_on_digits_with_the_engine_beside(tmp_path, capsys):
    config = get_config("blocks")
    config.update(model="layerwise.zoo.taki:TakiNet", draws=4, schemes=("taki",))
    config.model_args.update(depth=4, width=16)
    config.update(directions=("backward",), subset="test")
    table = start(config, tmp_path / "run")
    assert set(table["direction"]) == {"backward"}
    assert "predicted_second_moment" in set(table["statistic"])
    said = capsys.readouterr().out.split("networks, taki takes ")[1]
    assert "r from 1 to" in said
    assert "kernel predicts" in said
    assert "q from" not in said


def test_inputs_are_images_of_unit_second_moment():
    config = get_config("small")
    for name in ("digits", "gaussian"):
        config.update(inputs=name, batch=64)
        x = np.asarray(variance_curves.make_inputs(config, (8, 8, 3)))
        assert x.shape == (64, 8, 8, 3)
        assert np.square(x).mean() == pytest.approx(1, rel=0.05)
    config.update(inputs="digits", subset="test")
    other = variance_curves.make_inputs(config, (8, 8, 3))
    assert not np.allclose(other[:5], x[:5])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"inputs": "paintings"}, "paintings"),
        ({"schemes": ("asv_backward:x",)}, "cap 'x'"),
        ({"schemes": ("unknown",)}, "Unknown scheme"),
        ({"schemes": ()}, r"schemes=\(\)"),
        ({"model": "f35"}, "No architecture 'f35'"),
        ({"model": "layerwise.zoo.taki:TakiNett"}, "cannot be imported"),
        ({"model": "layerwise.zoo.taki:TakiNet"}, "cannot be built"),
        ({"method": "eq. 4"}, "method='eq. 4'"),
        ({"directions": ("backwards",)}, "Did you mean 'backward'"),
        ({"inputs": "digits", "subset": "val"}, "subset='val'"),
        ({"inputs": "tfds:nothing"}, "no prepared data set 'nothing'"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_bad_configuration_is_one_error_before_any_work(tmp_path, change, match):
    config = small()
    config.update(change)
    with pytest.raises(lw.errors.LayerwiseError, match=match):
        start(config, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_unknown_form():
    with pytest.raises(ValueError, match="quick, full, blocks and small"):
        get_config("fast")
