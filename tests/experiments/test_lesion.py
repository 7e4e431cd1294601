import flax.linen as nn
import jax
import numpy as np
import pandas as pd
import pytest

from experiments import degradation, lesion
from experiments.blocks import chain, without
from experiments.configs import (
    degradation as degradation_config,
    lesion as lesion_config,
)
from experiments.launch import execute
from experiments.training import Data, train


@pytest.mark.slow
@pytest.mark.parametrize("network", lesion.NETWORKS)
def test_a_chain_ends_in_the_networks_logits(network, key):
    model = lesion.build(lesion_config.get_config("small"), network)
    x = jax.random.normal(key, (3, 8, 8, 3))
    variables = model.init(key, x)
    net = chain(model, variables, x)
    expected = np.asarray(model.apply(variables, x))
    np.testing.assert_allclose(net.logits(net.blocks), expected, rtol=2e-4, atol=1e-5)
    # A deleted first block passes on what it got, which is not negative.
    left = without(model, net.blocks, {0})
    np.testing.assert_array_equal(left[0](net.inputs), net.inputs)
    assert not np.allclose(net.logits(left), expected, rtol=0.01)


@pytest.mark.slow
def test_a_residual_net_survives_a_lesion_that_a_plain_one_does_not(tmp_path):
    config = lesion_config.get_config("quick")
    config.counts = (1,)
    config.path_samples = 2
    table = execute(lesion.check, lesion.run, config, tmp_path / "run")
    error = table.groupby(["operation", "network"])["error"].median()
    assert error["none"].max() < 0.3
    assert error["delete", "residual"] < 0.3
    assert error["delete", "plain"] > 0.7
    found = pd.read_csv(tmp_path / "run" / "paths.csv")
    assert found["paths"].sum() == pytest.approx(1)
    assert (tmp_path / "run" / "lesion.png").stat().st_size > 10_000


def test_no_more_blocks_are_deleted_than_there_are():
    config = lesion_config.get_config("small")
    config.counts = (4,)
    with pytest.raises(lesion.InvalidArgumentError, match="has 3 blocks"):
        lesion.check(config)


def rows(losses):
    return pd.DataFrame(
        {"network": "plain", "depth": depth, "seed": seed, "train_loss": loss}
        for depth, values in losses.items()
        for seed, loss in enumerate(values)
    )


def test_the_conclusion_counts_seeds():
    said = degradation.conclusion(rows({8: (0.1, 0.2, 0.3), 32: (0.5, 0.1, 0.6)}))
    assert "32 layers end at a higher training loss than 8 in 2 of 3 seeds" in said


@pytest.mark.slow
def test_degradation_writes_its_table(tmp_path):
    config = degradation_config.get_config("small")
    table = execute(degradation.check, degradation.run, config, tmp_path / "run")
    assert np.isfinite(table["train_loss", "mean"]).all()
    assert (tmp_path / "run" / "degradation.png").stat().st_size > 10_000


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, *, train=False):
        return nn.BatchNorm(use_running_average=not train)(x)


def test_running_averages_end_as_the_moments_of_the_training_images(key):
    x = np.asarray(jax.random.normal(key, (50, 4))) * 3 + 1
    data = Data(x, np.zeros(50, np.int32), x, np.zeros(50, np.int32))
    variables = Normed().init(key, x)
    got = train(Normed(), variables, data, steps=1, learning_rate=0.0, key=key)
    stats = got.variables["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(stats["mean"], x.mean(0), rtol=1e-4)
    np.testing.assert_allclose(stats["var"], x.var(0), rtol=1e-4)
