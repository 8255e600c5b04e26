from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.speculation.generated_rounds import JSON, generate
from tests.bench.speculation.recorded_rounds import RecordedRequest, RecordedRounds, matching_tokens


def test_a_written_file_reads_back_equal(tmp_path: Path) -> None:
    rounds = RecordedRounds("generated", tuple(generate(JSON, 3)))
    rounds.write(tmp_path / "rounds.json")
    assert RecordedRounds.read(tmp_path / "rounds.json") == rounds


def test_lists_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="places"):
        RecordedRequest("json", 10, (0, 1), (0, 1), (0, 1), (0,))


def test_an_unknown_domain_is_refused() -> None:
    with pytest.raises(KeyError, match="prose"):
        RecordedRounds("", tuple(generate(JSON, 1))).of_domain("prose")


@pytest.mark.parametrize(
    ("proposed", "answer", "expected"),
    [((1, 2, 3), (1, 2, 4), 2), ((1, 2), (1, 2, 3), 2), ((1, 2, 3), (1,), 1), ((), (1,), 0), ((5,), (1,), 0)],
)
def test_tokens_match_up_to_the_first_difference(
    proposed: tuple[int, ...], answer: tuple[int, ...], expected: int
) -> None:
    assert matching_tokens(proposed, answer) == expected
