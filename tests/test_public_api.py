"""The documentation lists the public API, all of it and nothing else."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import layerwise


API_PAGE = Path(__file__).parents[1] / "docs" / "api.md"
PUBLIC = getattr(layerwise, "__all__", [])
# As in "- `layerwise.measure`": one name a line.
LISTED = re.findall(r"^- `layerwise\.(\w+)`", API_PAGE.read_text(), re.MULTILINE)

# What `import layerwise` must not drag in; import them where they are used.
HEAVY = (
    "matplotlib.pyplot",
    "pandas",
    "altair",
    "sklearn",
    "dask",
    "tensorflow_datasets",
)


def test_there_is_a_public_api():
    assert len(PUBLIC) == len(set(PUBLIC)) > 0


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_has_a_docstring(name):
    assert inspect.getdoc(getattr(layerwise, name)), f"{name} has no docstring"


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_is_documented(name):
    assert name in LISTED, f"docs/api.md needs a line:\n- `layerwise.{name}`: ..."


def test_nothing_else_is_documented():
    unknown = set(LISTED) - set(PUBLIC)
    assert not unknown, f"docs/api.md lists what layerwise does not export: {unknown}"


def test_import_is_light():
    """What jax and flax load themselves, as pandas in some versions, is not ours."""
    code = f"import {{}}, sys; print(*[m for m in {HEAVY} if m in sys.modules])"
    loaded = [
        subprocess.run(
            [sys.executable, "-c", code.format(modules)],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split()
        for modules in ("jax, flax.linen, flax.nnx, optax", "layerwise")
    ]
    assert set(loaded[1]) <= set(loaded[0])


def test_every_reference_key_resolves_in_the_notation_page():
    root = Path(__file__).parents[1]
    key = re.compile(r"\[([A-Z][a-zA-Z]+\d{4}b?)\]")
    listed = set(key.findall((root / "docs" / "notation.md").read_text()))
    used = {
        found
        for path in (root / "layerwise").rglob("*.py")
        for found in key.findall(path.read_text())
    }
    assert used <= listed, f"docs/notation.md lacks {sorted(used - listed)}"


ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def _anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    """Files and headings exist; what lies outside is an address at least."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"!?\[[^\]]*\]\(([^)\s]+)\)", text):
        if ":" in target:
            assert re.fullmatch(r"https://[\w.-]+\.[a-z]{2,}(/\S*)?", target), target
            continue
        path, _, anchor = target.partition("#")
        found = page.parent / path if path else page
        assert found.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in _anchors(found), f"{page.name}: no {target}"
