"""The HTML page: what it says, and that it does it in a browser."""

import dataclasses
import json
import os
import re
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
from report.browser import Browser, find

import layerwise as lw


class Net(nn.Module):
    """Five layers in two blocks, the weights of one far too large."""

    @nn.compact
    def __call__(self, x):
        for _ in range(5):
            x = nn.relu(nn.Dense(24, kernel_init=nn.initializers.he_normal())(x))
        return nn.Dense(4)(x)


@pytest.fixture(scope="module")
def report() -> lw.VarianceReport:
    x = jax.random.normal(jax.random.key(0), (8, 24))
    params = Net().init(jax.random.key(1), x)
    return lw.propagate_variance(Net(), params, x, draws=6, title="Net <script>")


@pytest.fixture(scope="module")
def sick(report) -> lw.VarianceReport:
    """The same, with a signal that loses a factor of 30 at every layer."""
    m = report.measurement
    factor = 30.0 ** -np.array([s.layer for s in m.sites])
    mean, variance = dict(m.mean), dict(m.variance)
    mean["forward"] = mean["forward"] * np.sqrt(factor)
    variance["forward"] = variance["forward"] * factor
    return dataclasses.replace(
        report, measurement=dataclasses.replace(m, mean=mean, variance=variance)
    )


@pytest.fixture
def page(sick, tmp_path) -> Path:
    path = tmp_path / "report.html"
    sick.to_html(path)
    return path


def test_the_page_holds_all_it_needs(page):
    text = page.read_text()
    assert len(text) < 2e6
    assert not re.findall(r"""(?:src|href)=["']?(?:http|//)""", text)
    assert "@import" not in text
    assert text.count("<script") == 2, "a title must not open a script"
    found = re.search(r'type="application/json">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    data = json.loads(found[1])
    assert data["verdict"] == "sick"
    assert [r["path"] for r in data["rows"]][:2] == ["input", "Dense_0"]
    assert "test_page.py" in data["rows"][1]["source"]
    assert set(data["rows"][1]["changed"]) == {"weights", "activation"}


def test_select(report, tmp_path):
    report.to_html(tmp_path / "some.html", select="Dense_[12]")
    text = (tmp_path / "some.html").read_text()
    assert '"path":"Dense_1"' in text
    assert '"path":"Dense_3"' not in text
    assert list(report.table(select=["Dense_0", "input"])["path"]) == [
        "input", "Dense_0",
    ]  # fmt: skip
    frame = report.to_frame(select=lambda path: path.endswith("4"))
    assert set(frame["path"]) == {"Dense_4"}
    assert "Dense_3" not in report.to_markdown(select="Dense_4")


def test_markdown_and_json_say_the_verdict(sick):
    text = sick.to_markdown()
    assert text.startswith("**Net <script>: sick**")
    assert "**sick: vanishing forward**" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 7
    assert len({line.count("|") for line in rows}) == 1
    data = json.loads(sick.to_json())
    assert data["verdict"] == "sick"
    value, sem = data["findings"][0]["evidence"]["factor"]
    assert value < 1e-2
    assert sem > 0


def test_one_axes(report):
    ax = report.plot()[0].figure.add_subplot()
    assert report.plot(ax=ax, direction="backward") is ax
    assert ax.get_title(loc="left") == "Backward"


@pytest.mark.skipif(find() is None, reason="no Chromium on this machine")
def test_the_page_in_a_browser(page, tmp_path):
    with Browser(page) as browser:
        text = browser.evaluate("document.body.innerText")
        assert "SICK" in text
        assert "vanishing forward" in text
        assert "7 of 7 layers" in text
        assert (
            browser.evaluate("document.querySelectorAll('svg path.mean').length") == 2
        )

        hovered = "svg[data-direction=forward]"
        browser.hover(hovered, across=0.55)
        tip = browser.evaluate("document.getElementById('tip').innerText")
        assert re.search(r"^3\s+Dense_2", tip), tip
        assert "test_page.py:" in tip
        assert "8 × 24" in tip
        assert "weights ×" in tip
        assert re.search(r"q predicted\s+[\d.]+ \(exact\), measured / predicted", tip)
        assert "predicted by kernel, bars: its stated tolerance" in text
        assert browser.evaluate("document.querySelector('tr.on').dataset.layer") == "3"

        browser.evaluate("document.querySelector('svg').focus()")
        browser.press("Home", "ArrowRight", "ArrowRight")
        tip = browser.evaluate("document.getElementById('tip').innerText")
        assert re.search(r"^2\s+Dense_1", tip), tip
        browser.press("Escape")
        assert (
            browser.evaluate("document.getElementById('tip').style.display") == "none"
        )
        browser.evaluate("document.querySelector(\"th[data-column='0']\").focus()")
        browser.press("Enter")
        last = "document.querySelector('#body tr td:nth-child(2)').innerText"
        assert browser.evaluate(last) == "Dense_5"

        browser.click("th[data-column='2']")  # by q, least first
        first = "document.querySelector('#body tr td:nth-child(2)').innerText"
        assert browser.evaluate(first) == "Dense_5"
        browser.click("th[data-column='2']")
        assert browser.evaluate(first) == "input"

        browser.type("#filter", "dense_[12]".replace("[12]", "?"))
        assert "6 of 7 layers" in browser.evaluate("document.body.innerText")
        browser.type("#filter", "4")  # dense_?4
        assert "0 of 7 layers" in browser.evaluate("document.body.innerText")
        browser.evaluate(
            "document.getElementById('filter').value = 'Dense_2';"
            "document.getElementById('filter').dispatchEvent(new Event('input'))"
        )
        assert "1 of 7 layers" in browser.evaluate("document.body.innerText")

        browser.click(".finding a")
        assert browser.errors == []
        assert all(u.startswith(("file:", "data:")) for u in browser.requests)
        shot = Path(os.environ.get("LAYERWISE_SCREENSHOTS", tmp_path)) / "page.png"
        browser.screenshot(shot)
        assert shot.stat().st_size > 20_000

        telephone = {"width": 400, "height": 800, "deviceScaleFactor": 2}
        browser.send("Emulation.setDeviceMetricsOverride", mobile=False, **telephone)
        assert browser.evaluate("document.documentElement.scrollWidth") == 400


@pytest.mark.skipif(find() is None, reason="no Chromium on this machine")
def test_the_notebook_view_in_a_browser(report, tmp_path):
    path = tmp_path / "cell.html"
    theirs = "<style>svg { max-width: 100%; height: auto; }</style>"  # JupyterLab's
    path.write_text(f"<!doctype html>{theirs}<body>{report._repr_html_()}")
    with Browser(path) as browser:
        cells = browser.evaluate(
            "[...document.querySelectorAll('table svg')].map(s => s.clientWidth)"
        )
        assert len(cells) == 2 * 7
        assert min(cells) == 96
        shot = Path(os.environ.get("LAYERWISE_SCREENSHOTS", tmp_path)) / "cell.png"
        browser.screenshot(shot)
