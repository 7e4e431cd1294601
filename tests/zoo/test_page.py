"""docs/zoo.md says of every architecture what the engine says of it today."""

import pathlib

import pytest

from benchmarks import zoo as grades
from layerwise import zoo
from layerwise.theory.prediction import DIRECTIONS
from tests.zoo.test_models import REPRESENTATIVES


PAGE = pathlib.Path(__file__).parents[2] / "docs" / "zoo.md"
QUICK = ("mlp", "taki_cnn", "taki_mlp")


def rows():
    """Returns the cells of every table row of the page, without backticks."""
    lines = PAGE.read_text(encoding="utf-8").replace("`", "").splitlines()
    table = [line.strip("| ").split(" | ") for line in lines if line[:2] == "| "]
    return [row for row in table if row[0] not in ("---", "architecture", "equation")]


def test_every_architecture_is_on_the_page():
    assert [row[0] for row in rows() if len(row) == len(grades.HEADER)] == zoo.names()


def check(name):
    _, found = grades.graded(name)
    (row,) = [r for r in rows() if r[0] == name]
    assert row[:4] == [c.strip("`") for c in grades.cells(name, found)[:4]]
    for direction, cell in zip(DIRECTIONS, (row[4], row[6]), strict=True):
        assert cell == grades.grades_text(found.directions[direction].grades)
    why = [r for r in rows() if len(r) == 3 and name in r[2].split(", ")]
    assert {(r[0], r[1]) for r in why} == set(found.sampled)


@pytest.mark.parametrize("name", QUICK)
def test_grades_are_those_of_the_page(name):
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*REPRESENTATIVES} - {*QUICK}))
def test_grades_of_every_class_are_those_of_the_page(name):
    check(name)
