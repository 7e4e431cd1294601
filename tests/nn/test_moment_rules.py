"""Every kind of layer, predicted against samples, forward and backward."""

import pytest

from experiments.claims.layer_effects import probe
from layerwise.nn import layers


CHEAP = {"dense", "relu", "dropout"}


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(k, id=k.name, marks=() if k.name in CHEAP else pytest.mark.slow)
        for k in layers.kinds()
    ],
)
def test_rule_against_samples(kind):
    """Within 5 standard errors, beyond what a rule says of itself, if it has one."""
    ratios = probe(kind, draws=200)
    for direction, ratio in ratios.items():
        if ratio.grade in ("-", "measured"):
            continue
        assert ratio.sigmas < 5, (direction, ratio)
