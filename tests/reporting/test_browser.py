"""The page as Chromium shows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spile.reporting import write_report

pytestmark = pytest.mark.browser

WIDTHS = (400, 800, 1400)
SCHEMES = ("light", "dark")

CONTRASTS = r"""
const parse = text => {
  const numbers = text.match(/[\d.]+(e-?\d+)?/g).map(Number);
  const scale = text.startsWith("color(") ? 1 : 255;
  return {rgb: numbers.slice(0, 3).map(v => v / scale), alpha: numbers.length > 3 ? numbers[3] : 1};
};
const luminance = rgb => rgb
  .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const behind = element => {
  for (let e = element; e; e = e.parentElement) {
    const color = parse(getComputedStyle(e).backgroundColor);
    if (color.alpha === 1) return color.rgb;
    if (color.alpha > 0) throw Error("half transparent background on " + e.outerHTML.slice(0, 80));
  }
};
const found = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  const style = getComputedStyle(element);
  if (!walker.currentNode.data.trim() || !element.getClientRects().length) continue;
  const front = parse(element.closest("svg") ? style.fill : style.color);
  if (front.alpha !== 1) throw Error("half transparent text in " + element.outerHTML.slice(0, 80));
  const [dark, light] = [luminance(front.rgb), luminance(behind(element))].sort((a, b) => a - b);
  found.push([(light + 0.05) / (dark + 0.05), walker.currentNode.data.trim(), element.className.toString()]);
}
return found;
"""


@pytest.fixture
def page(tmp_path: Path, run: dict[str, Any]) -> Path:
    long = "a_label_without_any_place_to_break_it_" * 3
    run["mistakes"][0]["predicted"] = long
    run["table"][3]["address"] = f"encoder.{long}"
    (tmp_path / "run.json").write_text(json.dumps(run))
    return write_report(tmp_path)


def requests(browser: Any) -> list[str]:
    messages = [json.loads(entry["message"])["message"] for entry in browser.log("performance")]
    sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return [url for url in sent if not url.startswith("data:")]


def test_nothing_is_requested_and_the_console_is_silent(browser: Any, page: Path) -> None:
    requests(browser), browser.log("browser")
    browser.show(page, width=1400, scheme="light")
    assert browser.run("return [...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert requests(browser) == [page.as_uri()]
    assert browser.log("browser") == []


def test_the_check_itself_sees_a_request_and_an_error(browser: Any, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text('<img src="absent.png"><script>console.error("oops")</script>')
    requests(browser), browser.log("browser")
    browser.show(page, width=1400, scheme="light")
    assert requests(browser) == [page.as_uri(), (tmp_path / "absent.png").as_uri()]
    assert any("oops" in entry["message"] for entry in browser.log("browser"))


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_sticks_out_and_one_drawing_of_each_chart_shows(browser: Any, page: Path, width: int) -> None:
    browser.show(page, width=width, scheme="light")
    assert browser.run("return innerWidth") == width
    assert browser.run("return document.scrollingElement.scrollWidth") <= width
    shown = "return [...document.querySelectorAll('svg.chart')].filter(c => c.getClientRects().length)"
    assert browser.run(f"{shown}.length") == 2
    sizes = browser.run(
        f"{shown}.flatMap(c => [...c.querySelectorAll('text')].map(t => c.getScreenCTM().a * "
        "parseFloat(getComputedStyle(t).fontSize)))"
    )
    assert 10.5 <= min(sizes) <= max(sizes) <= 20
    outside = "t => (r => r.left < 0 || r.right > innerWidth)(t.getBoundingClientRect())"
    names = f"{shown}.flatMap(c => [...c.querySelectorAll('text')]).filter({outside}).map(t => t.textContent)"
    assert browser.run(names) == []


def test_wide_tables_scroll_in_their_own_box(browser: Any, page: Path) -> None:
    browser.show(page, width=400, scheme="light")
    box = browser.run(
        "const t = document.querySelector('table.points'), b = t.closest('.scroll');"
        "b.scrollLeft = 200; const name = t.querySelector('tbody th').getBoundingClientRect();"
        "return {over: b.scrollWidth - b.clientWidth, left: name.left - b.getBoundingClientRect().left}"
    )
    assert box["over"] > 100
    assert box["left"] == 0, "the point's name stays in sight"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_text_stands_out_from_its_background(browser: Any, page: Path, scheme: str) -> None:
    browser.show(page, width=1400, scheme=scheme)
    found = browser.run(CONTRASTS)
    assert len(found) > 250
    assert [item for item in found if item[0] < 4.5] == []


def test_the_schemes_differ(browser: Any, page: Path) -> None:
    papers = []
    for scheme in SCHEMES:
        browser.show(page, width=1400, scheme=scheme)
        papers.append(browser.run("return getComputedStyle(document.body).backgroundColor"))
    assert papers == ["rgb(251, 250, 248)", "rgb(20, 23, 27)"]


def test_the_tables_hold_the_numbers_of_the_run(browser: Any, page: Path, run: dict[str, Any]) -> None:
    browser.show(page, width=1400, scheme="light")
    scores = browser.run(
        "return [...document.querySelectorAll('table.points tbody tr')]"
        ".map(row => [...row.querySelectorAll('data')].map(d => Number(d.value)))"
    )
    keys = ("score", "stderr", "test_score", "dims", "macs", "params", "alpha")
    assert scores == [[row[key] for key in keys if row.get(key) is not None] for row in run["table"]]
    headline = browser.run("return document.querySelector('h1').textContent")
    assert headline.replace("\u202f", " ").startswith(
        "blocks.4 gets 81.1 % of 4,950 held-out samples right: 30.0"
    )
