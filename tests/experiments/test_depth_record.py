import jax
import numpy as np
import pandas as pd
import pytest

from experiments import depth_record
from experiments.configs.depth_record import get_config
from experiments.launch import execute


def test_a_torus_convolution_is_that_of_a_padded_image(key):
    x = jax.random.normal(key, (2, 5, 6, 3))
    kernel = jax.random.normal(key, (3, 3, 3, 4))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="wrap")
    expected = jax.lax.conv_general_dilated(
        padded, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    got = depth_record._torus_conv(x, kernel)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_orthogonal_kernels_keep_lengths_and_angles_through_200_layers(key):
    config = get_config("quick")
    config.sigma_b = 0.0001
    x = jax.random.normal(key, (2, 8, 8, 1)) * 0.05  # where tanh is nearly linear

    def readout_input(law):
        model = depth_record.build(config, "tanh", law, 200)
        variables = model.init(key, x)
        kernel = np.asarray(variables["params"]["Dense_0"]["kernel"])
        out = np.asarray(model.apply(variables, x))
        return np.linalg.lstsq(kernel.T, out.T, rcond=None)[0].T, model.gain

    states, gain = readout_input("orthogonal")
    assert gain == pytest.approx(1, abs=0.01)
    a, b = states / np.linalg.norm(states, axis=1, keepdims=True)
    assert abs(a @ b) < 0.9  # two inputs are still two


@pytest.mark.slow
def test_a_record_is_written(tmp_path):
    table = execute(
        depth_record.check, depth_record.run, get_config("small"), tmp_path / "run"
    )
    assert "steps at 0.01" in table.loc[("tanh", "orthogonal"), 10]
    assert (tmp_path / "run" / "depth_record.png").stat().st_size > 10_000


def test_the_table_takes_the_fastest_rate_and_says_what_was_not_reached():
    rows = [
        {"rate": rate, "seed": seed, "depth": depth, "steps": steps, "accuracy": 0.4}
        for rate, depth, steps in ((0.1, 10, 30), (0.01, 10, 20), (0.1, 99, None))
        for seed in range(2)
    ]
    frame = pd.DataFrame(rows).assign(activation="tanh", law="orthogonal")
    table = depth_record.table_of(get_config("quick"), frame)
    assert table[10].tolist() == ["20 steps at 0.01"]
    assert table[99].tolist() == ["not in 40 (0.40)"]
