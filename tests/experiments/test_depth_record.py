import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from experiments import depth_record
from experiments.configs.depth_record import get_config
from experiments.launch import execute


def test_a_torus_convolution_is_that_of_a_padded_image(key):
    x = jax.random.normal(key, (2, 5, 6, 3))
    kernel = jax.random.normal(key, (3, 3, 3, 4))
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="wrap")
    expected = jax.lax.conv_general_dilated(
        padded, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    got = depth_record._torus_conv(x, kernel)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_delta_orthogonal_kernels_keep_every_inner_product(key):
    config = get_config("quick")
    config.sigma_b = 1e-4  # where the edge of chaos has a gain of one
    model = depth_record.build(config, "tanh", "orthogonal", 2)
    assert model.gain == pytest.approx(1, abs=0.01)
    kernels = model._kernels(key, (2, 3, 3, 8, 8))
    x = jax.random.normal(key, (2, 4, 4, 8))
    y = depth_record._torus_conv(depth_record._torus_conv(x, kernels[0]), kernels[1])
    flat, kept = (np.asarray(a).reshape(2, -1) for a in (x, y))
    np.testing.assert_allclose(
        kept @ kept.T / model.gain**4, flat @ flat.T, rtol=1e-4, atol=1e-3
    )


@pytest.mark.slow
def test_a_record_is_written(tmp_path):
    table = execute(
        depth_record.check, depth_record.run, get_config("small"), tmp_path / "run"
    )
    assert "steps at 0.01" in str(table.loc[("tanh", "orthogonal"), 10])
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
