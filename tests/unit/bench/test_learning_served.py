"""What is served is what was simulated: the drafts of a run's looks, and the same count of tokens per round."""

from __future__ import annotations

from pathlib import Path

import pytest

from aurora_runtime.errors import EngineFault
from aurora_runtime.training.data.examples import examples_of
from aurora_runtime.training.evaluation import evaluate
from aurora_runtime.training.model import checkpoint
from aurora_runtime.training.model.draft import DraftModel
from aurora_runtime.training.model.vocabulary_map import VocabularyMap
from aurora_runtime.validation.load_client import Answer, BatchResult
from tests.assets.traces.drafted import CHAINS, TREES
from tests.bench.learning import learner, shift
from tests.bench.learning.configurations import CONFIGURATIONS, DRAFT_STEPS, PUBLISHED
from tests.bench.learning.matching import Match
from tests.bench.learning.recorded import Traffic
from tests.bench.learning.replay import LOOKS, run
from tests.bench.learning.served import accept_length, beside, table
from tests.unit.training import tiny
from tests.unit.training.trees import tree_trace


@pytest.fixture
def traffic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Traffic:
    def untrained_draft() -> tuple[DraftModel, VocabularyMap]:
        return tiny.draft_of(tiny.target(tmp_path / "target"))

    monkeypatch.setattr(learner, "untrained_draft", untrained_draft)
    traces = [tree_trace(seed, answer=6) for seed in range(16)]
    assert 0 < sum(t.held_out for t in traces) < 10
    return Traffic("json", {CHAINS: traces, TREES: traces}, 1.0)


@pytest.mark.parametrize("name", ["averaged", "random"])
def test_a_run_keeps_the_draft_of_every_look(tmp_path: Path, traffic: Traffic, name: str) -> None:
    done = run(traffic, name, CONFIGURATIONS[name], Match.TRAFFIC, 1, None, tmp_path / "kept")
    fresh = [t for t in traffic.traces[CHAINS] if not t.held_out]
    assert len(done.looks) == LOOKS + 1
    assert (done.looks[0].tokens, done.looks[0].steps) == (0, 0)
    assert done.looks[-1].tokens == sum(t.answer_tokens for t in fresh)
    target = tiny.target(tmp_path / "target")
    draft, ids = checkpoint.load(tmp_path / "kept" / str(LOOKS), target.embedding)
    vocabulary = VocabularyMap.of(ids, tiny.VOCAB)
    held_out = [e for t in traffic.traces[CHAINS] if t.held_out for e in examples_of(t, tiny.VOCAB)]
    seen = evaluate(draft, held_out, vocabulary, DRAFT_STEPS)
    assert seen.acceptance_length == pytest.approx(done.looks[-1].accept_length, rel=0.1)  # exported in bf16
    (row,) = beside([done], [0, LOOKS], [1.0, 2.0])
    assert row.served.tokens == row.simulated.tokens == (0.0, float(done.looks[-1].tokens))
    assert table([row]).splitlines()[-1].startswith(f"| {name} | 1.00 (")


def test_a_walk_goes_through_three_phases(traffic: Traffic) -> None:
    points = list(shift.walk([traffic, traffic], CONFIGURATIONS[PUBLISHED], Match.STEPS, 0, 1 << 30))
    assert len(points) == 3 * (shift.PARTS + 1)
    assert [p.tokens for p in points].count(0) == 3
    assert len(shift.summary(["a", "b"], {"fifo": [points, points]}).splitlines()) == 3


def test_rounds_are_counted_without_an_answers_first_token() -> None:
    answers = (Answer((1, 2, 3, 4), 1), Answer((1, 2, 3), 2))
    assert accept_length(BatchResult(answers, 1.0)) == pytest.approx(5 / 3)
    with pytest.raises(EngineFault, match="1 requests failed"):
        accept_length(BatchResult((*answers, None), 1.0))
