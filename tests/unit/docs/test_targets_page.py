"""The page of targets lists the families of the code."""

from __future__ import annotations

from pathlib import Path

from aurora_runtime.training.target.families import FAMILIES

PAGE = Path(__file__).parents[3] / "docs/reference/targets.md"


def test_the_page_lists_every_architecture_of_every_family() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if "ForC" in line]
    assert rows == [f"| {family.name} | {', '.join(family.architectures)} |" for family in FAMILIES]
