"""The table of schemes in the documentation is the one that the code makes."""

from pathlib import Path

import pytest

import layerwise as lw
from layerwise.errors import InvalidArgumentError
from layerwise.initializers import registry


PAGE = Path(__file__).parents[2] / "docs" / "initializers.md"


def test_the_page_has_the_table_of_the_code():
    text = PAGE.read_text()
    begin, end = "<!-- table: begin -->\n", "\n<!-- table: end -->"
    shown = text[text.index(begin) + len(begin) : text.index(end)]
    assert shown == registry.markdown_table(), (
        "Paste registry.markdown_table() between the marks in docs/initializers.md."
    )


def test_the_table_begins_with_the_papers():
    rows = registry.markdown_table().splitlines()[2:]
    assert [row.split("`")[1] for row in rows[:3]] == [
        "glorot",
        "kaiming_fan_in",
        "asv_forward",
    ]
    assert len(rows) == len(lw.scheme_names())


def test_options_are_described():
    text = PAGE.read_text()
    for name in lw.scheme_names():
        for option in registry.find(name).options:
            assert f"`{option}`" in text


def test_unknown_schemes_list_all():
    with pytest.raises(InvalidArgumentError) as error:
        registry.find("kernel_forwards")
    assert "Did you mean 'kernel_forward'" in str(error.value)
    assert all(name in str(error.value) for name in lw.scheme_names())
