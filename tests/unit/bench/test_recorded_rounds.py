from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from aurora_api.v1alpha1.draft import LookupScope
from aurora_runtime.serving.speculation.lookup_index import LookupIndex
from tests.assets.traces.proposals import Tree
from tests.bench.speculation import record
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


def test_rounds_are_recorded_after_each_token_that_something_can_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    def chains(_draft: Any, _vocabulary: Any, trace: Any, _spec: Any) -> list[Tree]:
        """A draft that is right about the next token, and wrong about the one after it."""
        answer = trace.tokens.tolist()[trace.prompt_length :]
        return [Tree((root, following, 0), (-1, 0, 1)) for root, following in itertools.pairwise(answer)]

    def trace_of(*tokens: int) -> Any:
        return SimpleNamespace(tokens=torch.tensor(tokens), prompt_length=2, answer_tokens=len(tokens) - 2)

    monkeypatch.setattr(record, "propose", chains)
    index, unused = LookupIndex(LookupScope.SPECULATOR, 1000), Any
    traces = [trace_of(1, 2, 3, 4, 5, 6), trace_of(1, 2, 9), trace_of(7, 8, 3, 4, 5, 6)]
    first, second = record.record_rounds("d", traces, unused, unused, index)  # type: ignore[arg-type]
    assert (first.prompt_tokens, first.lookup_length, first.draft_right) == (2, (0, 0, 0), (1, 1, 1))
    assert second.lookup_right == (3, 2, 1), "the answer before was kept to its end"
    assert second.lookup_match == (1, 2, 3)
