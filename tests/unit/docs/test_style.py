"""Documents are readable as source text, and the plots of the results fit their data."""

from __future__ import annotations

import pytest

from tests.bench import plots
from tests.unit.docs.markdown import ROOT, Page, page, pages

MAX_LINE = 120
MAX_README_LINES = 120
MAX_SVG_BYTES = 60_000


@pytest.mark.parametrize("document", pages(), ids=lambda document: document.name)
def test_lines_are_short(document: Page) -> None:
    for line in document.prose:
        exempt = line.text.startswith("|") or "://" in line.text
        assert exempt or len(line.text) <= MAX_LINE, f"{document.name}:{line.number}: {len(line.text)} characters"


def test_the_readme_is_short() -> None:
    assert len(page("README.md").path.read_text().splitlines()) < MAX_README_LINES


@pytest.mark.parametrize("name", plots.PLOTS)
def test_plots_are_those_of_their_data(name: str) -> None:
    text = (ROOT / "docs/results" / f"{name}.svg").read_text()
    assert len(text.encode()) < MAX_SVG_BYTES
    assert text == plots.render(name), "run python -m tests.bench.plots"
