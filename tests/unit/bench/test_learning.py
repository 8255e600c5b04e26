"""The comparison of recipes is fair: same traffic, same steps, and a difference is a paired one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from aurora_runtime.training import tally
from aurora_runtime.training.examples import examples_of
from aurora_runtime.training.replay import Memory
from aurora_runtime.training.session import Session
from tests.bench.learning.configurations import CONFIGURATIONS, REFERENCE, Configuration
from tests.bench.learning.replay import Look, Remapping, Run, fresh_traffic, learn_shard, met, narrowed
from tests.bench.learning.report import difference, table
from tests.unit.training import tiny
from tests.unit.training.trees import tree_trace


@pytest.mark.parametrize("name", list(CONFIGURATIONS))
def test_every_configuration_makes_the_same_steps_and_learns(tmp_path: Path, name: str) -> None:
    how: Configuration = CONFIGURATIONS[name]
    draft, vocabulary = tiny.draft_of(tiny.target(tmp_path))
    session = Session(draft, vocabulary, how.recipe, torch.device("cpu"))
    before = [p.detach().clone() for p in draft.parameters()]
    traces = [tree_trace(seed, answer=8) for seed in range(9)]
    learn_shard(session, Memory(1 << 30), traces, how)
    assert session.steps == 4
    assert any(not torch.equal(a, b) for a, b in zip(before, draft.parameters(), strict=True))


def test_the_map_follows_the_traffic_as_the_trainers_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "LEAST", 300)
    target = tiny.target(tmp_path)
    draft, vocabulary = tiny.draft_of(target)
    session = Session(draft, vocabulary, CONFIGURATIONS["map"].recipe, torch.device("cpu"))
    traces = [tiny.trace(seed, answer=60, least=150) for seed in range(12)]
    held_out = [e for trace in traces[8:] for e in examples_of(trace, tiny.VOCAB)]
    remapping, memory = Remapping(session, target, held_out), Memory(1 << 30)
    found = [
        remapping.after(learn_shard(session, memory, part, CONFIGURATIONS["map"])) for part in (traces[:4], traces[4:8])
    ]
    assert found[0] is None, "too few answers"
    assert found[1] is not None
    assert torch.equal(session.vocabulary.to_target, found[1].ids)


def test_the_rounds_that_a_draft_meets_are_its_own(tmp_path: Path) -> None:
    """Of a draft that guesses at random, hardly a token is right, whatever the recorded one had right."""
    draft, vocabulary = tiny.draft_of(tiny.target(tmp_path))
    session = Session(draft, vocabulary, CONFIGURATIONS["surprising"].recipe, torch.device("cpu"))
    trace = tree_trace(3, answer=40)
    recorded = examples_of(trace, tiny.VOCAB)
    (example,) = met(session, trace, recorded)
    assert example.accepted.shape == recorded[0].accepted.shape
    served = example.accepted[example.accepted >= 0]
    assert int((served + 1).sum()) == trace.answer_tokens - 1, "rounds follow one another to the answer's end"
    assert int(served.sum()) < int(recorded[0].accepted.clamp(min=0).sum())
    assert bool((example.accepted[:1] >= 0).all()), "the first stands where the prompt ends"


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


def run_of(name: str, rounds: tuple[int, ...], seed: int = 0) -> Run:
    look = Look(1000, 8, rounds, tuple(30 for _ in rounds))
    return Run("json", name, seed, (look,), 5000, 1.0)


def test_a_difference_is_paired_by_request() -> None:
    """Requests differ far more than recipes: each needs one round more or less, always in the same direction."""
    hard = tuple(range(10, 30))
    worse, better = run_of(REFERENCE, hard), run_of("discard 1", tuple(r - 1 for r in hard))
    text = difference([(better, worse)])
    low = float(text.split("[")[1].split(",")[0])
    assert low > 0
    assert difference([(worse, worse)]) == "+0.00 [+0.00, +0.00]"


def test_the_table_has_a_row_per_configuration() -> None:
    lines = table([run_of(REFERENCE, (10, 20)), run_of("fifo", (15, 20)), run_of("fifo", (10, 25), 1)]).splitlines()
    assert lines[2].startswith("| configuration | 1.0k |")
    assert len([line for line in lines if line.startswith("| fifo: ")]) == 1
    assert "| 2.00 |" in next(line for line in lines if line.startswith(f"| {REFERENCE}: "))
