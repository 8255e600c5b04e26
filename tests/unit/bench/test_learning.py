"""The comparison of recipes is fair: they see the same traffic, and take the same steps where steps are matched."""

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
from tests.bench.learning.learner import Learner, with_own_rounds, with_top_k
from tests.bench.learning.matching import STEPS_MULTIPLE, Match
from tests.bench.learning.random_start import randomise
from tests.bench.learning.recipe_run import fresh_traffic
from tests.bench.learning.vocabulary_remapping import VocabularyRemapper
from tests.unit.training import tiny
from tests.unit.training.trees import tree_trace

CPU = torch.device("cpu")


def tiny_learner(folder: Path, configuration: Configuration, match: Match) -> Learner:
    draft, vocabulary = tiny.draft_of(tiny.target(folder))
    return Learner(Session(draft, vocabulary, configuration.recipe, CPU), configuration, match)


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, each in CONFIGURATIONS.items()
        if each.is_comparable(Match.STEPS) or each.recipe.replay < STEPS_MULTIPLE
    ],
)
def test_every_configuration_takes_the_same_steps_and_learns(tmp_path: Path, name: str) -> None:
    learner = tiny_learner(tmp_path, CONFIGURATIONS[name], Match.STEPS)
    before = [p.detach().clone() for p in learner.draft.parameters()]
    learner.learn([tree_trace(seed, answer=8) for seed in range(9)], [])
    assert learner.session.steps == 4
    assert any(not torch.equal(a, b) for a, b in zip(before, learner.draft.parameters(), strict=True))


def test_exactly_one_configuration_is_the_trainers_default() -> None:
    assert [name for name, each in CONFIGURATIONS.items() if each.is_default] == ["map, replay 3, averaged"]


def test_with_matched_traffic_a_replayed_batch_is_one_more_step(tmp_path: Path) -> None:
    traces = [tree_trace(seed, prompt=120, answer=30) for seed in range(9)]  # three fill a batch
    steps = {}
    for name in (PUBLISHED, REFERENCE, "replay 3"):
        learner = tiny_learner(tmp_path, CONFIGURATIONS[name], Match.TRAFFIC)
        learner.learn(traces, [])
        steps[name] = learner.session.steps
    assert steps == {PUBLISHED: 3, REFERENCE: 6, "replay 3": 12}


def test_the_vocabulary_map_follows_the_traffic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary_coverage, "MIN_TOKENS_BEFORE_CHANGE", 300)
    target, configuration = tiny.target(tmp_path), CONFIGURATIONS["map"]
    session = Session(*tiny.draft_of(target), configuration.recipe, CPU)
    learner = Learner(session, configuration, Match.STEPS, VocabularyRemapper(session, target))
    traces, before = [tiny.trace(seed, answer=60, least=150) for seed in range(12)], session.vocabulary
    held_out = [e for trace in traces[8:] for e in examples_of(trace, tiny.VOCAB)]
    learner.learn(traces[:4], held_out)
    assert session.vocabulary is before, "too few answers"
    learner.learn(traces[4:8], held_out)
    after = session.vocabulary.to_target
    assert len(after) == len(before.to_target)
    assert int((after >= 150).sum()) > int((before.to_target >= 150).sum())


@pytest.mark.parametrize("shape", [CHAINS, TREES])
def test_a_draft_gets_the_rounds_that_it_would_cause_itself(tmp_path: Path, shape: str) -> None:
    """Almost no token that a random draft proposes is accepted, however many tokens the recorded rounds accepted."""
    draft, vocabulary = tiny.draft_of(tiny.target(tmp_path))
    trace = tree_trace(3, answer=40)
    recorded = examples_of(trace, tiny.VOCAB)
    (example,) = with_own_rounds(draft, vocabulary, trace, recorded, DRAFT_SHAPES[shape])
    assert example.accepted.shape == recorded[0].accepted.shape
    served = example.accepted[example.accepted >= 0]
    assert int((served + 1).sum()) == trace.answer_tokens - 1, "rounds follow each other to the end of the answer"
    assert int(served.sum()) < int(recorded[0].accepted.clamp(min=0).sum())
    assert bool((example.accepted[:1] >= 0).all()), "the first round begins where the prompt ends"


def test_a_learner_replaces_the_recorded_rounds_only_if_replay_is_prioritized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = list[DraftSpec]()

    def record_shape(
        _: DraftModel, __: VocabularyMap, ___: RequestTrace, examples: list[Example], spec: DraftSpec
    ) -> list[Example]:
        shapes.append(spec)
        return examples

    monkeypatch.setattr(learner_module, "with_own_rounds", record_shape)
    for name in ("recent", "surprising"):
        tiny_learner(tmp_path, CONFIGURATIONS[name], Match.STEPS).learn([tree_trace(1, answer=8)], [])
    assert shapes == [DRAFT_SHAPES[CHAINS]]


def test_capturing_fewer_tokens_keeps_the_probability_mass() -> None:
    trace = tree_trace(1)
    few = with_top_k(trace, 3)
    assert few.top_ids.shape[1] == 3
    for t in (trace, few):
        mass = t.top_logprobs.float().exp().sum(-1) + t.uncaptured_mass.float()
        torch.testing.assert_close(mass, torch.ones_like(mass), atol=2e-3, rtol=0)


def test_fresh_traffic_ends_at_the_token_limit_and_contains_no_held_out_request() -> None:
    traces = [tree_trace(seed, answer=10) for seed in range(40)]
    fresh = fresh_traffic(traces, 95)
    assert sum(t.answer_tokens for t in fresh) == 100
    assert not any(t.held_out for t in fresh)
    assert len(fresh_traffic(traces, None)) == sum(not t.held_out for t in traces)


def test_a_random_start_depends_on_the_seed_and_keeps_the_projection_of_the_targets_states(tmp_path: Path) -> None:
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


def test_the_averaged_weights_are_evaluated_and_the_latest_weights_learn(tmp_path: Path) -> None:
    traces = [tree_trace(seed, answer=8) for seed in range(24)]
    plain, averaged = (tiny_learner(tmp_path, CONFIGURATIONS[name], Match.STEPS) for name in (REFERENCE, "averaged"))
    for learner in (plain, averaged):
        learner.learn(traces, [])
    assert torch.equal(plain.draft.lm_head.weight, plain.session.draft.lm_head.weight)
    assert torch.equal(plain.draft.lm_head.weight, averaged.session.draft.lm_head.weight)
    assert not torch.equal(averaged.draft.lm_head.weight, averaged.session.draft.lm_head.weight)


def test_batch_sizes_and_much_replay_are_compared_at_equal_traffic_only() -> None:
    left_out = [name for name, each in CONFIGURATIONS.items() if not each.is_comparable(Match.STEPS)]
    assert left_out == ["batches 2", "batches 4", "map, replay 7", "map, replay 15", "map, replay 15, averaged"]
    assert all(each.is_comparable(Match.TRAFFIC) for each in CONFIGURATIONS.values())
