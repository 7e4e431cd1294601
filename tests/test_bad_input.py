"""Bad input gets one clear error: what was found, where, why, what to type.

Nothing is computed on it: the engine that would compile is replaced by one that fails.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import layerwise as lw
from layerwise.errors import (
    InputError,
    InvalidArgumentError,
    LayerwiseError,
    ParametersError,
    UnsupportedModelError,
)
from layerwise.measurement import ensemble


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.relu(nn.Conv(4, (3, 3))(x)).mean((1, 2)))


class Shaped(Net):
    input_shape = (8, 8, 3)


class NoWeights(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.relu(x)


class NoFeatures(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="after")(nn.Dense(0, name="empty")(x))


class Branching(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(4)(x)
        return x if x.sum() > 0 else -x


class Outer(nn.Module):
    @nn.compact
    def __call__(self, x):
        return Branching(name="inner")(nn.Dense(4)(x))


X = np.linspace(-1, 1, 2 * 8 * 8 * 3, dtype=np.float32).reshape(2, 8, 8, 3)
PARAMS = Net().init(jax.random.key(0), X)


def with_value(value):
    x = X.copy()
    x[1, 2, 3, 0] = value
    return x


def other_params():
    params = jax.tree.map(lambda x: x, PARAMS)
    params["params"]["Dense_0"]["kernel"] = jnp.ones((5, 3))
    return params


def missing_params():
    return {"params": {"Dense_0": PARAMS["params"]["Dense_0"]}}


def nan_params():
    params = jax.tree.map(lambda x: x, PARAMS)
    params["params"]["Conv_0"]["bias"] = jnp.full(4, jnp.nan)
    return params


# fmt: off
# ruff: noqa: E501
CASES: dict[str, tuple[type[Exception], str, Any, Any, Any, dict[str, Any]]] = {
    "no weights": (UnsupportedModelError, "no parameters", NoWeights(), None, X, {}),
    "fan-in 0": (
        UnsupportedModelError,
        "(empty|after).*fan-in 0",
        NoFeatures(),
        None,
        np.ones((2, 3), np.float32),
        {},
    ),
    "rank": (InputError, r"shape \(8, 8, 3\).*inputs\[None\]", Shaped(), None, X[0], {}),
    "rank without shape": (InputError, "cannot be called", Net(), None, X[0, 0], {}),
    "integers": (InputError, "uint8.*Conv_0", Net(), None, X.astype(np.uint8), {}),
    "complex": (InputError, "complex", Net(), None, X.astype(np.complex64), {}),
    "text": (InputError, "numeric arrays", Net(), None, np.array(["a"]), {}),
    "nan": (InputError, "1 NaN", Net(), None, with_value(np.nan), {}),
    "infinite": (InputError, "1 NaN or infinite", Net(), None, with_value(np.inf), {}),
    "zero": (InputError, "zero everywhere", Net(), None, 0 * X, {}),
    "empty": (InputError, "is empty", Net(), None, X[:0], {}),
    "missing": (InputError, "declares no `input_shape`", Net(), None, None, {}),
    "other params": (ParametersError, r"Dense_0/kernel.*\(5, 3\)", Net(), other_params(), X, {}),
    "missing params": (ParametersError, "Conv_0/bias' is missing", Net(), missing_params(), X, {}),
    "nan params": (ParametersError, "Conv_0/bias.*4 NaN", Net(), nan_params(), X, {}),
    "params no dict": (ParametersError, "is a list", Net(), [1.0], X, {}),
    "draws": (InvalidArgumentError, "draws=0", Net(), None, X, {"draws": 0}),
    "scheme": (InvalidArgumentError, "Did you mean 'glorot'", Net(), None, X, {"scheme": "glorott"}),
    "class": (InvalidArgumentError, "not an instance", Net, None, X, {}),
    "no model": (InvalidArgumentError, "is a int", 3, None, X, {}),
    "branch": (UnsupportedModelError, r"branches in Python.*test_bad_input.py:\d+ \(Branching.__call__\)", Branching(), None, X, {}),
    "branch inside": (UnsupportedModelError, r"\(Branching.__call__\) in inner: ", Outer(), None, X, {}),
    "call": (InputError, "train", Net(), None, X, {"kwargs": {"train": True}}),
    "function": (InvalidArgumentError, "no init", lambda p, x: x @ p, None, X, {}),
}
# fmt: on


@pytest.mark.parametrize("case", CASES)
def test_one_clear_error(case, monkeypatch):
    def never(*_, **__):
        raise AssertionError("something was computed")

    monkeypatch.setattr(ensemble, "run", never)
    kind, match, model, params, inputs, options = CASES[case]
    with pytest.raises(kind, match="(?s)" + match) as caught:
        lw.propagate_variance(model, params, inputs, **options)
    text = str(caught.value)
    assert isinstance(caught.value, LayerwiseError)
    assert len(text.splitlines()) == 3, text  # found, why, what to type


def test_errors_are_also_the_builtins_that_callers_expect():
    assert issubclass(InputError, ValueError)
    assert issubclass(ParametersError, ValueError)
    assert issubclass(InvalidArgumentError, ValueError)
    assert issubclass(UnsupportedModelError, NotImplementedError)
