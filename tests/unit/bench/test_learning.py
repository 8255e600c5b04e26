"""The comparison of recipes is fair: same traffic, same steps where they are matched, and a difference is paired."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from aurora_runtime.training.session import Session
from tests.bench.learning.average import Average
from tests.bench.learning.configurations import CONFIGURATIONS, PUBLISHED, REFERENCE, Configuration
from tests.bench.learning.learner import Learner, narrowed
from tests.bench.learning.matching import Match
from tests.bench.learning.replay import fresh_traffic
from tests.bench.learning.start import randomise
from tests.unit.training import tiny
from tests.unit.training.trees import tree_trace

CPU = torch.device("cpu")


def learner_of(folder: Path, how: Configuration, match: Match) -> Learner:
    draft, vocabulary = tiny.draft_of(tiny.target(folder))
    return Learner(Session(draft, vocabulary, how.recipe, CPU), how, match)


@pytest.mark.parametrize("name", list(CONFIGURATIONS))
def test_every_configuration_makes_the_same_steps_and_learns(tmp_path: Path, name: str) -> None:
    learner = learner_of(tmp_path, CONFIGURATIONS[name], Match.STEPS)
    before = [p.detach().clone() for p in learner.draft.parameters()]
    learner.learn([tree_trace(seed, answer=8) for seed in range(9)])
    assert learner.session.steps == 4
    assert any(not torch.equal(a, b) for a, b in zip(before, learner.draft.parameters(), strict=True))


def test_with_matched_traffic_a_replayed_batch_is_a_further_step_as_in_the_trainer(tmp_path: Path) -> None:
    traces = [tree_trace(seed, prompt=120, answer=30) for seed in range(9)]  # three fill a batch
    steps = {}
    for name in (PUBLISHED, REFERENCE, "replay 3"):
        learner = learner_of(tmp_path, CONFIGURATIONS[name], Match.TRAFFIC)
        learner.learn(traces)
        steps[name] = learner.session.steps
    assert steps == {PUBLISHED: 3, REFERENCE: 6, "replay 3": 12}


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


def test_an_average_follows_and_remembers_neither_the_start_nor_one_step_alone(tmp_path: Path) -> None:
    draft, _ = tiny.draft_of(tiny.target(tmp_path))
    average = Average(draft)
    assert average.draft.embedding is draft.embedding
    for value in range(101):
        with torch.no_grad():
            draft.norm.weight.fill_(float(value))
        average.follow(draft)
    middle = average.draft.norm.weight
    assert bool((middle == middle[0]).all())
    assert 85 < float(middle[0]) < 97  # about a tenth of the steps behind
    assert all(not p.requires_grad for p in average.draft.parameters())


def test_what_is_looked_at_is_the_average_and_what_learns_is_not(tmp_path: Path) -> None:
    traces = [tree_trace(seed, answer=8) for seed in range(24)]
    plain, averaged = (learner_of(tmp_path, CONFIGURATIONS[name], Match.STEPS) for name in (REFERENCE, "ema"))
    for learner in (plain, averaged):
        learner.learn(traces)
    assert torch.equal(plain.draft.lm_head.weight, averaged.session.draft.lm_head.weight)
    assert not torch.equal(averaged.draft.lm_head.weight, averaged.session.draft.lm_head.weight)
