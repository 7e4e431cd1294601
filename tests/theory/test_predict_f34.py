"""The whole engine against an exact table of a 34-layer network."""

import json
from pathlib import Path

import numpy as np
import pytest

import layerwise as lw
from layerwise.theory import engine
from layerwise.theory.predict import predict
from layerwise.theory.state import Grade


REFERENCE = json.loads(
    (Path(__file__).parents[1] / "data" / "f34_sitewise.json").read_text()
)
"""Of an independent implementation; the file says which."""
SCHEMES = REFERENCE["schemes"]


def white(size):
    """An input whose every entry has square 1, as the reference takes it."""
    signs = np.cos(np.arange(size * size * 3) ** 2 * 0.7).reshape(1, size, size, 3)
    return np.where(signs > 0, 1.0, -1.0).astype(np.float32)


def paths():
    prediction = predict(lw.zoo.f34(image_size=32), None, white(32), method="recursion")
    return prediction.layer_paths


@pytest.mark.slow  # 10 s each, at 224 px
@pytest.mark.parametrize("scheme", SCHEMES)
def test_exact_table_at_224(scheme):
    reference = SCHEMES[scheme]
    variances = dict(zip(paths(), reference["variance"], strict=True))
    got = predict(
        lw.zoo.f34(),
        None,
        white(224),
        method="sitewise",
        weight_variance=variances,
    )
    # Four digits; behind the pooling the reference's own pair moments are sampled
    # (4e5 points), which moves the average pool at the end by up to 1e-3.
    q, r = reference["q"], reference["r"]
    np.testing.assert_allclose(got.curve("forward")[1:34], q[:33], rtol=5e-5)
    np.testing.assert_allclose(got.curve("forward")[34], q[33], rtol=1e-3)
    np.testing.assert_allclose(got.curve("backward")[: len(r)], r, rtol=5e-5)


@pytest.mark.parametrize("size", [32, pytest.param(64, marks=pytest.mark.slow)])
def test_exact_table_at_smaller_sizes(size):
    variances = SCHEMES["kaiming_fan_in"]["variance"]
    got = predict(
        lw.zoo.f34(image_size=size),
        None,
        white(size),
        method="sitewise",
        weight_variance=dict(zip(paths(), variances, strict=True)),
    )
    q = REFERENCE["kaiming_fan_in_q"][str(size)]
    np.testing.assert_allclose(got.curve("forward")[1:], q, rtol=1e-3)


def test_no_pairs_are_given_up_that_the_backward_sweep_reads(monkeypatch):
    # Large maps hold fewer pairs; the overlapping pooling at the bottom reads its own.
    net = lw.zoo.f34(image_size=32, width=8)
    whole = predict(net, None, white(32), method="sitewise")
    monkeypatch.setattr(engine, "PAIRS_BACK_BUDGET", 0.0)
    fewer = predict(net, None, white(32), method="sitewise")
    assert Grade.MEASURED not in fewer.grade["backward"]
    np.testing.assert_allclose(
        fewer.curve("backward"), whole.curve("backward"), rtol=1e-6
    )


def test_grades_and_coverage():
    got = predict(lw.zoo.f34(image_size=32), None, white(32))
    assert "104 of 104 equations exact or approximate." in got.coverage
    first = got.find("u", 1)
    assert got.grade["forward"][first] is Grade.EXACT
    assert got.grade["forward"][got.find("u", 2)] is Grade.APPROXIMATE  # max pooling
    assert not got.sampled
    # The padding of 1x1 and 2x2 maps is what kills the signal here.
    last = got.factors["Conv_33"]
    assert last["padding"] == pytest.approx(1 / 9, rel=1e-6)
    assert got.factors["Conv_29"]["fan"] == pytest.approx(2.0, rel=1e-3)
