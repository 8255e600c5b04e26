"""The page in a real browser: at the width of a phone and of a desk, in light and in dark.

Skipped where there is no Chromium, but not in CI (`tests.assets.chromium`). The pictures are kept in build/report.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import pytest

from aurora_cli.report.builder import build
from aurora_cli.report.page.document import render
from tests.assets.browser import browser_page
from tests.assets.chromium import MISSING, browser_path, is_required
from tests.unit.cli.report_example import END, example, records
from tests.unit.docs.markdown import ROOT

PICTURES: Final = ROOT / "build/report"
SCREENS: Final = {"phone": (390, 844), "desk": (1080, 900)}
TOP_PIXELS: Final = 1050
"""Height of the pictures of a page's beginning."""
MIN_CONTRAST: Final = 4.5
"""WCAG 2.2, level AA, for text."""
MIN_LETTER_PIXELS: Final = 9.0
TEXTS: Final = (".lead", "dt", ".note", ".value", "td", "th", ".badge", "summary", "nav a", ".legend span")
CONTRASTS: Final = """(() => {
  const parts = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = colour => {
    const [r, g, b] = parts(colour).map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const ground = node => {
    for (let at = node; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if ((parts(colour)[3] ?? 1) > 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const contrast = (a, b) => (Math.max(light(a), light(b)) + .05) / (Math.min(light(a), light(b)) + .05);
  const found = {};
  for (const selector of SELECTORS) for (const node of document.querySelectorAll(selector)) {
    const value = contrast(getComputedStyle(node).color, ground(node));
    found[selector] = Math.min(found[selector] ?? 99, value);
  }
  for (const node of document.querySelectorAll("svg text"))
    if (node.getClientRects().length && !node.matches(".on, .faint *"))
      found["svg text"] = Math.min(found["svg text"] ?? 99, contrast(getComputedStyle(node).fill, ground(node)));
  return found;
})()"""
CLIPPED: Final = """[...document.querySelectorAll("svg.chart text")].filter(node => {
  const own = node.getBoundingClientRect(), chart = node.ownerSVGElement.getBoundingClientRect();
  return own.width && (own.left < chart.left - 1 || own.right > chart.right + 1);
}).map(node => node.textContent)"""
LETTERS: Final = """Math.min(...[...document.querySelectorAll("svg.chart")].filter(one => one.clientWidth)
  .map(one => 12 * one.getBoundingClientRect().width / one.viewBox.baseVal.width))"""


@pytest.fixture(name="browser")
def _browser() -> str:
    """The browser's program."""
    path = browser_path()
    if path is not None:
        return path
    if is_required():
        pytest.fail(MISSING)
    pytest.skip(MISSING)


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
async def test_the_page_is_readable_on_any_screen_in_both_themes(
    browser: str, screen: str, dark: bool, tmp_path: Path
) -> None:
    file = tmp_path / "report.html"
    file.write_text(render(build(example(), records(), END)), encoding="utf-8")
    width, height = SCREENS[screen]
    async with browser_page(browser, tmp_path / "profile") as page:
        await page.open(file, width=width, height=height, dark=dark)
        name = f"{screen}-{'dark' if dark else 'light'}"
        await page.screenshot(PICTURES / f"{name}.png")
        await page.screenshot(PICTURES / f"{name}-top.png", max_height=TOP_PIXELS)
        assert page.complaints == []
        assert set(page.requested) == {file.as_uri()}
        text = await page.value("document.body.innerText")
        for words in ("How much faster is each version?", "concurrency 16", "v10", "rolled back", "96.4%"):
            assert words in text
        shapes = await page.value("document.getElementById('shapes').parentElement.innerText")
        for words in ("Which shapes do verify rounds have?", "draft-5", "lookup, 3 to 7 tokens", "off", "23 Nov 2026"):
            assert words in shapes
        assert await page.value("document.documentElement.scrollWidth") <= width
        assert await page.value(CLIPPED) == []
        assert await page.value(LETTERS) >= MIN_LETTER_PIXELS
        shown = await page.value("[...document.querySelectorAll('figure svg.chart')].map(one => one.clientWidth > 0)")
        assert shown.count(True) == len(shown) // 2, "of each chart, one of two drawings is shown"
        ground = await page.value("getComputedStyle(document.body).backgroundColor")
        assert (max(map(int, ground.removeprefix("rgb(").rstrip(")").split(","))) < 100) is dark
        contrasts = await page.value(CONTRASTS.replace("SELECTORS", json.dumps(TEXTS)))
        assert set(contrasts) == {*TEXTS, "svg text"}
        assert {name: value for name, value in contrasts.items() if value < MIN_CONTRAST} == {}


async def test_a_text_that_would_be_a_script_runs_nothing(browser: str, tmp_path: Path) -> None:
    """Even if an element of others came through, the page's policy would keep it from running."""
    file = tmp_path / "report.html"
    page_text = render(build(example(), records(), END))
    file.write_text(page_text.replace("</main>", "<script>document.title = 'taken'</script></main>"), encoding="utf-8")
    async with browser_page(browser, tmp_path / "profile") as page:
        await page.open(file, width=800, height=600, dark=False)
        assert await page.value("document.title") == "Aurora report: chat in team"
        assert "Content Security Policy" in str(page.complaints)
