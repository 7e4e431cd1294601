"""The verdict on networks whose state is known: half of them well, half of them not."""

import dataclasses

import flax.linen as nn
import numpy as np
import pytest
from report.labelled import CASES, HE, Case, normal

import layerwise as lw
from layerwise.report.evidence import Evidence
from layerwise.report.finding import Finding
from layerwise.report.remedies import SPREAD_FIX


CHEAP = ("LeCun, ReLU, depth 4", "stddev 0.01 everywhere")


def diagnosis_of(case: Case) -> lw.Diagnosis:
    report = lw.propagate_variance(
        case.model,
        None,
        case.inputs,
        draws=8,
        method=None,
        statistics=("zeros", "cosine_examples"),
        **(case.options or {}),
    )
    return lw.diagnose(report)


def test_half_of_the_cases_are_well():
    well = sum(not case.sick for case in CASES.values())
    assert len(CASES) >= 40
    assert 0.4 <= well / len(CASES) <= 0.6


@pytest.mark.parametrize(
    "name",
    [n if n in CHEAP else pytest.param(n, marks=pytest.mark.slow) for n in CASES],
)
def test_verdict(name):
    case = CASES[name]
    found = diagnosis_of(case)
    assert found.verdict == ("sick" if case.sick else "healthy"), str(found)
    if case.sick:
        kinds = {f.kind for f in found if f.severity == "sick"}
        assert kinds & set(case.sick), str(found)
        assert all(f.reason and f.fix for f in found if f.severity == "sick")


class Tiny(nn.Module):
    """Three hidden layers, so that the trunk has a slope."""

    @nn.compact
    def __call__(self, x):
        for _ in range(3):
            x = nn.relu(nn.Dense(32, kernel_init=HE)(x))
        return nn.Dense(4)(x)


@pytest.fixture(scope="module")
def measured() -> lw.Measurement:
    return lw.measure(Tiny(), None, normal(8, 16), draws=8)


def changed(m: lw.Measurement, direction: str, factor: np.ndarray) -> lw.Measurement:
    """The measurement with each site's second moment multiplied by `factor`."""
    mean, variance = dict(m.mean), dict(m.variance)
    mean[direction] = mean[direction] * np.sqrt(factor)
    variance[direction] = variance[direction] * factor
    return dataclasses.replace(m, mean=mean, variance=variance)


def rows(m: lw.Measurement, keep: slice) -> lw.Measurement:
    cut = {d: x[keep] for d, x in m.mean.items()}
    var = {d: x[keep] for d, x in m.variance.items()}
    return dataclasses.replace(
        m, mean=cut, variance=var, draws=m.draws[keep],
        read={d: x[keep] for d, x in m.read.items()},
        weight_variance=m.weight_variance[keep], bias_variance=m.bias_variance[keep],
    )  # fmt: skip


def test_a_healthy_network_is_called_healthy(measured):
    found = lw.diagnose(measured)
    assert found.healthy, str(found)
    assert lw.assert_healthy(measured) == found


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize(("factor", "kind"), [(1e-1, "vanishing"), (1e1, "exploding")])
def test_drift_is_found_with_its_rate_and_first_layer(
    measured, direction, factor, kind
):
    layers = np.array([s.layer for s in measured.sites], float)
    if direction == "backward":
        layers = 4 - layers
    sick = changed(measured, direction, factor ** (1.5 * layers))
    found = lw.diagnose(sick)
    assert (found.verdict, found[0].kind, found[0].direction) == (
        "sick", kind, direction,
    )  # fmt: skip
    rate = found[0].evidence["per layer"]
    assert rate.value == pytest.approx(factor**1.5, rel=0.5)
    assert 0 < rate.sem < rate.value
    assert found[0].path == ("Dense_2" if direction == "forward" else "Dense_0")


def test_the_network_that_was_passed_in_is_judged_too(measured):
    layers = np.array([s.layer for s in measured.sites], float)
    sick = changed(measured, "forward", 0.01**layers)
    first = lambda a, b: {d: np.r_[a[d][:1], b[d][1:]] for d in a}
    mixed = dataclasses.replace(
        measured,
        draws=np.array([-1, *range(7)]),
        mean=first(sick.mean, measured.mean),
        variance=first(sick.variance, measured.variance),
    )
    found = lw.diagnose(mixed)
    assert found.verdict == "sick"
    assert found[0].reason.startswith("in the network that was passed in, ")


def test_what_the_network_passed_in_has_alone_is_not_blamed_on_its_law(measured):
    """As where running statistics were loaded that switch every unit off."""
    off = np.array(
        [s.layer > 2 or (s.layer, s.kind) == (2, "v") for s in measured.sites]
    )
    factor = np.ones((8, len(off)))
    factor[0, off] = 0.0
    mixed = dataclasses.replace(
        changed(measured, "forward", factor), draws=np.array([-1, *range(7)])
    )
    found = lw.diagnose(mixed)
    assert (found[0].kind, found[0].path) == ("vanishing", "Dense_1")
    assert "exactly zero from here on" in found[0].reason
    assert found[0].fix.startswith("draw the parameters anew, or look at what was")


def test_where_networks_scatter_width_is_the_fix(measured):
    """The mean is kept and a typical network is not: no scale mends that."""
    layers = np.array([s.layer for s in measured.sites], float)
    scatter = np.linspace(-12.0, 0.0, 8)[:, None]
    found = lw.diagnose(changed(measured, "forward", np.exp(scatter * (layers - 1))))
    assert (found[0].kind, found[0].direction) == ("vanishing", "forward")
    assert found[0].fix == SPREAD_FIX


def test_dead_channels_and_rank_collapse_where_they_were_measured(measured):
    shape = measured.mean["forward"].shape
    depth = np.array([s.layer for s in measured.sites], float)
    values = {
        "dead_fraction": np.where(depth == 2, 0.7, 0.0) * np.ones(shape),
        "zero_fraction": np.full(shape, 0.5),
        "cosine_examples": 1 - 30.0**-depth * np.ones(shape),
    }
    other = {name: dict.fromkeys(measured.mean, x) for name, x in values.items()}
    found = lw.diagnose(dataclasses.replace(measured, other=other))
    assert "not looked for" not in found.basis
    by_kind = {f.kind: f for f in found}
    assert found.verdict == "sick"
    assert by_kind["rank_collapse"].severity == "sick"
    assert by_kind["rank_collapse"].path == "Dense_1"
    assert by_kind["dead_units"].severity == "warning"
    assert by_kind["dead_units"].path == "Dense_1"
    assert "not looked for" in lw.diagnose(measured).basis


def test_networks_that_are_dead(measured):
    """A share of them is the ensemble's state, one of very many is bad luck."""
    layers = np.array([s.layer for s in measured.sites])
    for dead, severity in ((3, "sick"), (0, "")):
        factor = np.ones((8, len(layers)))
        factor[:dead, layers >= 2] = 0.0
        found = lw.diagnose(changed(measured, "forward", factor))
        assert found.verdict == (severity or "healthy"), str(found)
        if dead:
            assert (found[0].kind, found[0].path) == ("dead_networks", "Dense_1")
            assert found[0].evidence["share of networks"].value == dead / 8


def test_what_is_found_at_many_layers_is_said_once(measured):
    mean = dict(measured.mean)
    mean["forward"] = mean["forward"] + 5.0
    found = lw.diagnose(dataclasses.replace(measured, mean=mean))
    drifted = [f for f in found if f.kind == "mean_drift"]
    assert len(drifted) == 1
    assert drifted[0].path == "Dense_0"
    assert drifted[0].evidence["layers"].value == 4


def test_a_fix_is_code_or_words():
    made = lambda fix: Finding("x", "note", "", 0, "", {}, "", fix).fix_is_code
    assert made('params = lw.initialize(model, inputs, key, scheme="balanced")')
    assert made("lw.propagate_variance(..., draws=16)")
    assert not made("widen the layers: the variance of log q falls as depth / width")
    assert not made("")


def test_few_networks_cannot_show_health(measured):
    for keep in (slice(0, 1), slice(0, 3)):
        found = lw.diagnose(rows(measured, keep))
        assert found.verdict == "undecided"
        assert found[0].kind == "evidence"
        assert "draws=" in found[0].fix


def test_a_change_at_the_tolerance_is_undecided(measured):
    """Where the interval of two standard errors holds the tolerance, nobody knows."""
    q = Evidence(measured).hidden("forward")
    at_last = float(np.exp(np.abs(q.log - q.log[0]).max()))
    found = lw.diagnose(measured, tolerance=max(1.02 * at_last, 1.01))
    assert found.verdict == "undecided", str(found)


def test_nonfinite_names_layer_and_direction(measured):
    at = measured.find("u", 2)
    factor = np.ones(len(measured.sites))
    factor[at:] = np.inf
    found = lw.diagnose(changed(measured, "forward", factor))
    assert found.verdict == "sick"
    assert (found[0].kind, found[0].path, found[0].direction) == (
        "nonfinite", "Dense_1", "forward",
    )  # fmt: skip


def test_assert_healthy_says_what_where_and_what_to_type(measured):
    layers = np.array([s.layer for s in measured.sites], float)
    sick = changed(measured, "forward", 0.01**layers)
    with pytest.raises(lw.errors.UnhealthyError) as caught:
        lw.assert_healthy(sick)
    assert isinstance(caught.value, AssertionError)
    text = str(caught.value)
    for words in ("Tiny is SICK (8 networks", "vanishing forward at", "evidence:",
                  "Begin with: params = lw.initialize("):  # fmt: skip
        assert words in text


def test_one_layer_is_no_evidence():
    found = lw.diagnose(lw.measure(nn.Dense(4), None, normal(4, 8), draws=4))
    assert found.verdict == "undecided"
    assert "single layer" in found[0].reason


def test_tolerance_is_checked(measured):
    with pytest.raises(lw.errors.InvalidArgumentError, match="tolerance=100"):
        lw.diagnose(measured, tolerance=0.5)
