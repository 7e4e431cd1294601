"""What a finding proposes as code heals it: typed as it stands, and judged again."""

import re

import jax
import pytest
from report.labelled import CASES, Case
from report.test_verdict import diagnosis_of

import layerwise as lw
from layerwise.report.remedies import SPREAD_FIX


LONG = "post-norm, gain 4, depth 48, scanned"  # the scheme writes its 48 blocks out

SICK = [n for n, case in CASES.items() if case.sick and n != LONG]

CHEAP = "stddev 1 everywhere"

IN_WORDS = (
    "BatchNorm, one example",
    "BatchNorm without skips, depth 40",
    "inputs of 0 to 255",
    "inputs of 3e-7 in float16",
    "language model, embeddings of 3, tied",
    "linear, width 8, depth 100",
    "LSTM, recurrent stddev 20",
    "RNN, recurrent gain 0.1",
    "directions of length 0.3",
    "causal, normalized queries and keys, scores not divided",
    "width 2, depth 12: dead networks",
    "width 6, depth 40",
)
"""Those for which no other weights are the remedy."""


def typed(fix: str, case: Case) -> lw.Diagnosis:
    """Runs a fix as it stands, and judges the network and others drawn like it."""
    names = {
        "lw": lw,
        "model": case.model,
        "inputs": case.inputs,
        "key": jax.random.key(1),
    }
    exec(fix, names)  # what is tested is the very text that a user copies
    scheme = re.search(r'scheme="(\w+)"', fix)
    assert scheme is not None
    report = lw.propagate_variance(
        case.model,
        names["params"],
        case.inputs,
        draws=8,
        method=None,
        scheme=scheme[1],
    )
    return lw.diagnose(report)


@pytest.mark.parametrize(
    "name", [n if n == CHEAP else pytest.param(n, marks=pytest.mark.slow) for n in SICK]
)
def test_what_is_proposed_heals(name):
    case = CASES[name]
    found = diagnosis_of(case)
    fixes = {f.fix for f in found if f.fix_is_code and "lw.initialize" in f.fix}
    decisive = {f.fix for f in found if f.severity == "sick"}
    assert bool(fixes & decisive) != (name in IN_WORDS), str(found)
    for fix in fixes:
        again = typed(fix, case)
        treated = {(f.kind, f.direction) for f in found if f.fix == fix}
        # A scheme keeps the mean over networks; their scatter is the width's.
        left = [f for f in again if f.fix != SPREAD_FIX]
        assert not treated & {(f.kind, f.direction) for f in left}, f"{fix}\n{again}"
        if decisive <= fixes:
            assert not any(f.severity == "sick" for f in left), f"{fix}\n{again}"
