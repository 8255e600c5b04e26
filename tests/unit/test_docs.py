"""Every row of docs/reference/failure-modes.md names the test that proves it: those tests exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEST = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


def test_every_row_names_a_test_that_exists() -> None:
    rows = [
        line for line in (ROOT / "docs/reference/failure-modes.md").read_text().splitlines() if line.startswith("| ")
    ]
    rows = [row for row in rows if not row.startswith("| Failure")]
    assert len(rows) > 15
    for row in rows:
        named = TEST.findall(row)
        assert named, f"no test is named: {row[:60]}"
        for file, name in named:
            assert f"def {name}(" in (ROOT / file).read_text() if name else (ROOT / file).exists(), f"{file}::{name}"
