"""Generated files are those that their sources give."""

from __future__ import annotations

import pytest

from tests.generated.generated_file import GeneratedFile, with_part
from tests.generated.registry import FILES


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.path)
def test_a_generated_file_is_current(file: GeneratedFile) -> None:
    assert file.is_current, "run python -m tests.generated"


def test_a_generated_part_replaces_only_what_is_between_its_markers() -> None:
    text = "before\n<!-- generated: a -->\nold\n<!-- end -->\nafter\n<!-- generated: b -->\n<!-- end -->\n"
    made = with_part(text, "a", "new\n")
    assert made == text.replace("old\n", "\nnew\n\n")
    assert with_part(made, "a", "new\n") == made
    with pytest.raises(ValueError, match="markers"):
        with_part(text, "c", "new\n")
