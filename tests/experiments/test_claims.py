"""The ledger: complete, decided by running, and as it was found."""

import pytest

from experiments.claims import ledger
from experiments.claims.ledger import select
from layerwise.errors import InvalidArgumentError


COUNTS = {"N": 11, "H": 15, "R": 6, "T": 15, "L": 6}
QUICK = {"N1", "N2", "N4", "N5", "N6", "N7", "N8", "H2", "H14", "R4", "T1", "T2"}
BY_ID = {c.id: c for c in ledger.claims()}
CORRECTED = {"N4", "N6", "N8", "H9", "H12", "T2", "T4", "T5", "T11", "L5"}
FALSE = {"H11"}
MISSING_DATA = {"T14"}


def test_every_claim_has_a_row():
    assert set(BY_ID) == {f"{d}{i}" for d, n in COUNTS.items() for i in range(1, n + 1)}


@pytest.mark.parametrize(
    "id_",
    [
        pytest.param(c.id, marks=() if c.id in QUICK else pytest.mark.slow)
        for c in ledger.claims()
        if not c.slow
    ],
)
def test_verdict(id_):
    """What a claim was found to be; the function that decides does not know it."""
    (row,) = ledger.run([BY_ID[id_]])
    expected = ledger.HOLDS
    for verdict, ids in (
        (ledger.ONLY_IF, CORRECTED),
        (ledger.FAILS, FALSE),
        (ledger.NOT_RUN, MISSING_DATA),
    ):
        if id_ in ids:
            expected = verdict
    assert row.outcome.verdict == expected, row.outcome


def test_a_wrong_claim_would_not_hold():
    assert ledger.judge(False) == ledger.FAILS
    assert ledger.judge(False, True) == ledger.ONLY_IF
    assert not ledger.within([1.0, 1.1, 0.9, 1.0], 2.0, 5)


def test_the_page_has_every_row():
    rows = ledger.run([BY_ID["N2"], BY_ID["T2"]])
    page = ledger.markdown(rows)
    assert "| N2 |" in page
    assert ledger.ONLY_IF in page


def test_selection():
    assert [c.id for c in select(["T7"], slow=False)] == ["T7"]
    assert not any(c.slow for c in select([], slow=False))
    with pytest.raises(InvalidArgumentError, match=r"No claim 'H99'"):
        select(["H99"], slow=False)


def test_a_record_is_continued(tmp_path):
    record = tmp_path / "rows.jsonl"
    first = ledger.run([BY_ID["N2"]], record=record)
    record.write_text(record.read_text() + '{"id": "N5", "verd')
    calls = []
    again = ledger.run([BY_ID["N2"]], calls.append, record)
    assert again == first
    assert not calls
