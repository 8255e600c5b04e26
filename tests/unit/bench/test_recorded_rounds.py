from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from aurora_api.v1alpha1.draft import DraftSpec, LookupScope
from aurora_runtime.serving.speculation.lookup_index import LookupIndex
from aurora_runtime.training.model import checkpoint
from aurora_runtime.training.model.vocabulary_map import VocabularyMap
from tests.assets.traces.proposals import Tree, propose
from tests.bench.served.live_training import RECORD_FILE, TrainingRecord
from tests.bench.served.messages import reserved, traffic
from tests.bench.speculation import record
from tests.bench.speculation.generated_rounds import JSON, generate
from tests.bench.speculation.recorded_rounds import RecordedRequest, RecordedRounds, matching_tokens
from tests.unit.training import tiny


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


def test_recorded_traffic_is_neither_reserved_nor_learned() -> None:
    every = traffic("docstrings")
    learned = len(every) - 5
    assert record.unlearned_traffic("docstrings", 5, learned) == every[learned:]
    assert not {*every[learned:]} & {*reserved("docstrings")}
    with pytest.raises(ValueError, match="5 can be recorded"):
        record.unlearned_traffic("docstrings", 6, learned)
    with pytest.raises(ValueError, match="0 can be recorded"):
        record.unlearned_traffic("docstrings", 1, len(every) + 1)


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a draft as tests.bench.served writes it, for a tiny target whose answers are random tokens."""
    (tmp_path / "target").mkdir()
    target = tiny.target(tmp_path / "target")
    draft, vocabulary = tiny.draft_of(target)
    checkpoint.export(draft, vocabulary.to_target, tmp_path / "draft")
    training = TrainingRecord(
        tokens=70, requests=4, steps=1, positions=1, cpu_seconds=1.0, version=1, settled_seconds=0.0
    )
    (tmp_path / "draft" / RECORD_FILE).write_text(json.dumps(dataclasses.asdict(training)))
    monkeypatch.setattr(record, "load_small_target", lambda: target)
    monkeypatch.setattr(record, "recorded", answers_of)
    return tmp_path / "draft"


def answers_of(_name: str, messages: list[str]) -> list[Any]:
    return [tiny.trace(seed, prompt=5, answer=12) for seed, _ in enumerate(messages)]


def test_traffic_is_recorded_with_the_draft_in_the_folder(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def recorded(name: str, messages: list[str]) -> list[Any]:
        asked.append(messages)
        return answers_of(name, messages)

    monkeypatch.setattr(record, "recorded", recorded)
    rounds = record.record_traffic("docstrings", 3, trained)
    assert asked == [traffic("docstrings")[-3:]]
    assert [request.domain for request in rounds.requests] == ["docstrings"] * 3
    assert "the last 3 requests of the docstrings traffic; draft after 70 answer tokens" in rounds.description
    first = answers_of("", ["one"])[0]
    draft, ids = checkpoint.load(trained, tiny.target(trained.parent / "target").embedding)
    chains = propose(draft, VocabularyMap.of(ids, tiny.VOCAB), first, DraftSpec(steps=record.DRAFT_STEPS))
    answer = first.tokens.tolist()[first.prompt_length :]
    right = tuple(matching_tokens(chain.tokens[1:], answer[place + 1 :]) for place, chain in enumerate(chains))
    assert rounds.requests[0].draft_right == right


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--traffic", "docstrings"], "belong together"),
        (["--traffic", "docstrings", "--draft", "{missing}"], "training_record.json"),
        (["--traffic", "docstrings", "--draft", "{trained}", "--requests", "2000"], "can be recorded"),
    ],
)
def test_the_command_refuses_what_it_cannot_record(
    options: list[str],
    complaint: str,
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    filled = [each.format(trained=trained, missing=trained.parent) for each in options]
    monkeypatch.setattr("sys.argv", ["record", *filled])
    with pytest.raises(SystemExit):
        record.main()
    assert complaint in capsys.readouterr().err


def test_the_command_writes_the_recorded_traffic(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, traffic_of_draft = trained.parent / "rounds.json", ["--traffic", "docstrings", "--draft", str(trained)]
    monkeypatch.setattr("sys.argv", ["record", *traffic_of_draft, "--requests", "2", "--file", str(file)])
    record.main()
    assert RecordedRounds.read(file) == record.record_traffic("docstrings", 2, trained)
