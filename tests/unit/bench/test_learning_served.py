"""The served drafts are those of a run's evaluations, and the acceptance length counts as in the simulation."""

from __future__ import annotations

from pathlib import Path

import pytest

from aurora_runtime.errors import EngineFault
from aurora_runtime.training.data.examples import examples_of
from aurora_runtime.training.evaluation import evaluate
from aurora_runtime.training.model import checkpoint
from aurora_runtime.training.model.draft import DraftModel
from aurora_runtime.training.model.vocabulary_map import VocabularyMap
from aurora_runtime.validation.engines.load_client import Answer, BatchResult
from tests.assets.traces.drafted import CHAINS, TREES
from tests.bench.learning import learner, shift
from tests.bench.learning.configurations import CONFIGURATIONS, DRAFT_STEPS, PUBLISHED
from tests.bench.learning.matching import Match
from tests.bench.learning.recipe_run import EVALUATIONS, run_recipe
from tests.bench.learning.recorded_traffic import RecordedTraffic
from tests.bench.learning.served import acceptance_length, curve_pairs, table
from tests.unit.training import tiny
from tests.unit.training.trees import tree_trace


@pytest.fixture
def traffic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RecordedTraffic:
    def untrained_draft() -> tuple[DraftModel, VocabularyMap]:
        return tiny.draft_of(tiny.target(tmp_path / "target"))

    monkeypatch.setattr(learner, "untrained_draft", untrained_draft)
    traces = [tree_trace(seed, answer=6) for seed in range(16)]
    assert 0 < sum(t.held_out for t in traces) < 10
    return RecordedTraffic("json", {CHAINS: traces, TREES: traces}, 1.0)


@pytest.mark.parametrize("name", ["averaged", "random"])
def test_a_run_keeps_the_draft_of_every_evaluation(tmp_path: Path, traffic: RecordedTraffic, name: str) -> None:
    run = run_recipe(traffic, name, CONFIGURATIONS[name], Match.TRAFFIC, 1, None, tmp_path / "kept")
    fresh = [t for t in traffic.traces[CHAINS] if not t.held_out]
    assert len(run.evaluations) == EVALUATIONS + 1
    assert (run.evaluations[0].tokens, run.evaluations[0].steps) == (0, 0)
    assert run.evaluations[-1].tokens == sum(t.answer_tokens for t in fresh)
    target = tiny.target(tmp_path / "target")
    draft, ids = checkpoint.load(tmp_path / "kept" / str(EVALUATIONS), target.embedding)
    vocabulary = VocabularyMap.of(ids, tiny.VOCAB)
    held_out = [e for t in traffic.traces[CHAINS] if t.held_out for e in examples_of(t, tiny.VOCAB)]
    result = evaluate(draft, held_out, vocabulary, DRAFT_STEPS)
    assert result.acceptance_length == pytest.approx(run.evaluations[-1].acceptance_length, rel=0.1)  # exported in bf16
    (row,) = curve_pairs([run], [0, EVALUATIONS], [1.0, 2.0])
    assert row.served.tokens == row.simulated.tokens == (0.0, float(run.evaluations[-1].tokens))
    assert table([row]).splitlines()[-1].startswith(f"| {name} | 1.00 (")


def test_a_run_goes_through_three_phases(traffic: RecordedTraffic) -> None:
    points = list(shift.run_phases([traffic, traffic], CONFIGURATIONS[PUBLISHED], Match.STEPS, 0, 1 << 30))
    assert len(points) == 3 * (shift.EVALUATIONS_PER_PHASE + 1)
    assert [p.tokens for p in points].count(0) == 3
    assert len(shift.summary(["a", "b"], {"fifo": [points, points]}).splitlines()) == 3


def test_the_acceptance_length_leaves_out_an_answers_first_token() -> None:
    answers = (Answer((1, 2, 3, 4), 1), Answer((1, 2, 3), 2))
    assert acceptance_length(BatchResult(answers, 1.0)) == pytest.approx(5 / 3)
    with pytest.raises(EngineFault, match="1 requests failed"):
        acceptance_length(BatchResult((*answers, None), 1.0))
