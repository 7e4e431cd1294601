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


def test_refuses_a_folder_of_another_configuration(finished):
    folder, _ = finished
    other = small()
    other.draws = 3
    with pytest.raises(InvalidArgumentError, match="another configuration"):
        start(other, folder)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"inputs": "paintings"}, "paintings"),
        ({"schemes": ("asv_backward:x",)}, "cap 'x'"),
        ({"schemes": ("unknown",)}, "Unknown scheme"),
        ({"model": "f35"}, "No architecture 'f35'"),
    ],
)
def test_bad_configuration_is_one_error_before_any_work(tmp_path, change, match):
    config = small()
    config.update(change)
    with pytest.raises(lw.errors.LayerwiseError, match=match):
        start(config, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_unknown_form():
    with pytest.raises(ValueError, match="quick, full and small"):
        get_config("fast")
