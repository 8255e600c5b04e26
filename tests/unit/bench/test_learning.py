"""The comparison of recipes is fair: same traffic, same steps where they are matched, and a difference is paired."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from aurora_api.v1alpha1.draft import DraftSpec
from aurora_runtime.traces import RequestTrace
from aurora_runtime.training import vocabulary_coverage
from aurora_runtime.training.data.examples import Example, examples_of
from aurora_runtime.training.model.draft import DraftModel
from aurora_runtime.training.model.vocabulary_map import VocabularyMap
from aurora_runtime.training.optim.session import Session
from tests.assets.traces.drafted import CHAINS, DRAFT_SHAPES, TREES
from tests.bench.learning import learner as learner_module
from tests.bench.learning.configurations import CONFIGURATIONS, PUBLISHED, REFERENCE, Configuration
from tests.bench.learning.learner import Learner, met, narrowed
from tests.bench.learning.matching import SHARE, Match
from tests.bench.learning.remapping import Remapping
from tests.bench.learning.replay import fresh_traffic
from tests.bench.learning.start import randomise
from tests.unit.training import tiny
from tests.unit.training.trees import tree_trace

CPU = torch.device("cpu")


def learner_of(folder: Path, how: Configuration, match: Match) -> Learner:
    draft, vocabulary = tiny.draft_of(tiny.target(folder))
    return Learner(Session(draft, vocabulary, how.recipe, CPU), how, match)


@pytest.mark.parametrize(
    "name", [name for name, how in CONFIGURATIONS.items() if how.differs(Match.STEPS) or how.recipe.replay < SHARE]
)
def test_every_configuration_makes_the_same_steps_and_learns(tmp_path: Path, name: str) -> None:
    learner = learner_of(tmp_path, CONFIGURATIONS[name], Match.STEPS)
    before = [p.detach().clone() for p in learner.draft.parameters()]
    learner.learn([tree_trace(seed, answer=8) for seed in range(9)], [])
    assert learner.session.steps == 4
    assert any(not torch.equal(a, b) for a, b in zip(before, learner.draft.parameters(), strict=True))


def test_one_configuration_is_what_the_trainer_does() -> None:
    assert [name for name, how in CONFIGURATIONS.items() if how.is_default] == ["map, replay 3, averaged"]


def test_with_matched_traffic_a_replayed_batch_is_a_further_step_as_in_the_trainer(tmp_path: Path) -> None:
    traces = [tree_trace(seed, prompt=120, answer=30) for seed in range(9)]  # three fill a batch
    steps = {}
    for name in (PUBLISHED, REFERENCE, "replay 3"):
        learner = learner_of(tmp_path, CONFIGURATIONS[name], Match.TRAFFIC)
        learner.learn(traces, [])
        steps[name] = learner.session.steps
    assert steps == {PUBLISHED: 3, REFERENCE: 6, "replay 3": 12}


def test_the_map_follows_the_traffic_as_the_trainers_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary_coverage, "MIN_TOKENS_BEFORE_CHANGE", 300)
    target, how = tiny.target(tmp_path), CONFIGURATIONS["map"]
    session = Session(*tiny.draft_of(target), how.recipe, CPU)
    learner = Learner(session, how, Match.STEPS, Remapping(session, target))
    traces, before = [tiny.trace(seed, answer=60, least=150) for seed in range(12)], session.vocabulary
    judges = [e for trace in traces[8:] for e in examples_of(trace, tiny.VOCAB)]
    learner.learn(traces[:4], judges)
    assert session.vocabulary is before, "too few answers"
    learner.learn(traces[4:8], judges)
    after = session.vocabulary.to_target
    assert len(after) == len(before.to_target)
    assert int((after >= 150).sum()) > int((before.to_target >= 150).sum())


@pytest.mark.parametrize("shape", [CHAINS, TREES])
def test_the_rounds_that_a_draft_meets_are_its_own(tmp_path: Path, shape: str) -> None:
    """Of a draft that guesses at random, hardly a token is right, whatever the recorded one had right."""
    draft, vocabulary = tiny.draft_of(tiny.target(tmp_path))
    trace = tree_trace(3, answer=40)
    recorded = examples_of(trace, tiny.VOCAB)
    (example,) = met(draft, vocabulary, trace, recorded, DRAFT_SHAPES[shape])
    assert example.accepted.shape == recorded[0].accepted.shape
    served = example.accepted[example.accepted >= 0]
    assert int((served + 1).sum()) == trace.answer_tokens - 1, "rounds follow one another to the answer's end"
    assert int(served.sum()) < int(recorded[0].accepted.clamp(min=0).sum())
    assert bool((example.accepted[:1] >= 0).all()), "the first stands where the prompt ends"


def test_a_learner_keeps_the_rounds_that_its_own_draft_meets_only_where_they_decide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[DraftSpec]()

    def seen(
        _: DraftModel, __: VocabularyMap, ___: RequestTrace, examples: list[Example], spec: DraftSpec
    ) -> list[Example]:
        asked.append(spec)
        return examples

    monkeypatch.setattr(learner_module, "met", seen)
    for name in ("recent", "surprising"):
        learner_of(tmp_path, CONFIGURATIONS[name], Match.STEPS).learn([tree_trace(1, answer=8)], [])
    assert asked == [DRAFT_SHAPES[CHAINS]]


def test_a_narrow_capture_loses_no_mass() -> None:
    trace = tree_trace(1)
    few = narrowed(trace, 3)
    assert few.top_ids.shape[1] == 3
    for t in (trace, few):
        mass = t.top_logprobs.float().exp().sum(-1) + t.rest.float()
        torch.testing.assert_close(mass, torch.ones_like(mass), atol=2e-3, rtol=0)


def test_traffic_is_cut_by_answer_tokens_and_never_held_out() -> None:
    traces = [tree_trace(seed, answer=10) for seed in range(40)]
    fresh = fresh_traffic(traces, 95)
    assert sum(t.answer_tokens for t in fresh) == 100
    assert not any(t.held_out for t in fresh)
    assert len(fresh_traffic(traces, None)) == sum(not t.held_out for t in traces)


def test_a_random_start_is_the_seeds_and_keeps_how_the_targets_states_come_in(tmp_path: Path) -> None:
    draft, _ = tiny.draft_of(tiny.target(tmp_path))
    fc, head = draft.fc.weight.detach().clone(), draft.lm_head.weight.detach().clone()
    one, same, other = (copy.deepcopy(draft) for _ in range(3))
    for each, seed in ((one, 1), (same, 1), (other, 2)):
        randomise(each, seed)
    assert torch.equal(one.lm_head.weight, same.lm_head.weight)
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)
    assert not torch.equal(one.lm_head.weight, head)
    assert torch.equal(one.fc.weight, fc)
    assert bool((one.norm.weight == 1).all())


def test_what_is_looked_at_is_the_average_and_what_learns_is_not(tmp_path: Path) -> None:
    traces = [tree_trace(seed, answer=8) for seed in range(24)]
    plain, averaged = (learner_of(tmp_path, CONFIGURATIONS[name], Match.STEPS) for name in (REFERENCE, "averaged"))
    for learner in (plain, averaged):
        learner.learn(traces, [])
    assert torch.equal(plain.draft.lm_head.weight, plain.session.draft.lm_head.weight)
    assert torch.equal(plain.draft.lm_head.weight, averaged.session.draft.lm_head.weight)
    assert not torch.equal(averaged.draft.lm_head.weight, averaged.session.draft.lm_head.weight)


def test_batch_sizes_and_much_replay_are_compared_where_the_matching_does_not_set_them() -> None:
    left_out = [name for name, how in CONFIGURATIONS.items() if not how.differs(Match.STEPS)]
    assert left_out == ["batches 2", "batches 4", "map, replay 7", "map, replay 15", "map, replay 15, averaged"]
    assert all(how.differs(Match.TRAFFIC) for how in CONFIGURATIONS.values())
