"""Run in a fresh environment that holds the wheel and what it depends on alone."""

import sys
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np

import layerwise as lw


here = Path(lw.__file__)
assert here.is_relative_to(sys.prefix), f"{here} is not the installed wheel"
for top in ("experiments", "benchmarks", "tests"):
    assert not (here.parents[1] / top).exists(), f"the wheel installs {top}/"
assert (here.parent / "py.typed").exists(), "the wheel lacks py.typed"
for name in lw.__all__:
    getattr(lw, name)
print(f"layerwise {lw.__version__} from {here.parent}: {len(lw.__all__)} public names")

model = nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(64), nn.relu, nn.Dense(4)])
inputs = jax.random.normal(jax.random.key(0), (8, 32))
params = lw.initialize(model, inputs, jax.random.key(1), scheme="kaiming_fan_in")
report = lw.propagate_variance(model, params, inputs, draws=8)
print(report)
values = report.to_frame()["value"].to_numpy()
assert values.size
assert np.isfinite(values).all()
