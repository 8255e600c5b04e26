"""What cannot be controlled is refused with a reason, hooks leave nothing behind in SGLang, and ranks decide alike."""

from __future__ import annotations

import multiprocessing
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from aurora_runtime.engine.arms import OFF, Arm, Source
from aurora_runtime.engine.speculation_settings import SpeculationSettings
from aurora_runtime.serving.speculation.engine import (
    RankAgreement,
    decode,
    encode,
    graph_sizes,
    keep_last_note,
    obstacle_to_control,
    start_copy,
)
from aurora_runtime.serving.speculation.rounds import Decision, plain_decision

SETTINGS = SpeculationSettings(state_folder="/state", boot="b", draft_steps=2, lookup_steps=3)
WORKER = SimpleNamespace(
    adaptive_controller=SimpleNamespace(candidate_steps=sorted({arm.steps for arm in SETTINGS.arms}))
)
SWITCH = "adaptive_spec.restore"


@pytest.fixture(autouse=True)
def context(monkeypatch: pytest.MonkeyPatch) -> Any:
    """SGLang's settings, which fit."""
    context = SimpleNamespace(enable_mixed_chunk=False)
    names = ("get_schedule", "get_spec", "get_parallel")
    module = SimpleNamespace(**{name: lambda: context for name in names})
    monkeypatch.setitem(sys.modules, "sglang.srt.runtime_context", module)
    return context


def test_a_flag_that_does_not_fit_is_named(context: Any) -> None:
    assert obstacle_to_control(WORKER, SETTINGS) is None
    context.enable_mixed_chunk = True
    assert "--enable-mixed-chunk" in str(obstacle_to_control(WORKER, SETTINGS))


def test_a_worker_without_the_states_of_the_arms_is_named() -> None:
    without = SimpleNamespace(adaptive_controller=None)
    assert "turned --speculative-adaptive off" in str(obstacle_to_control(without, SETTINGS))
    more = SETTINGS.model_copy(update={"draft_steps": 7, "lookup_steps": 0})
    assert "lacks the steps" in str(obstacle_to_control(WORKER, more))


def test_wide_rounds_have_graphs_of_small_batches_and_at_least_one() -> None:
    sizes = [1, 8, 16, 24, 32, 48, 64, 128, 256]
    assert [max(graph_sizes(width, sizes)) for width in (1, 2, 3, 4, 5, 8, 9, 12)] == [256, 256, 64, 64, 32, 32, 16, 16]
    assert graph_sizes(12, [128, 256]) == [128]
    assert graph_sizes(12, []) == []


def test_the_committed_tokens_are_the_first_of_each_row() -> None:
    result = SimpleNamespace(next_token_ids=torch.arange(8, dtype=torch.int32), accept_lens=torch.tensor([3, 1]))
    assert start_copy(result)() == [[0, 1, 2], [4]]


def test_of_switches_in_a_row_only_the_last_note_is_kept() -> None:
    """SGLang reads the same settings from its notes as before, because a later note overrides them."""
    notes: list[tuple[str, object]] = [(SWITCH, 1), ("/set_internal_state", 2)]
    for steps in range(1000):
        notes.append((SWITCH, {"speculative_num_steps": steps}))
        keep_last_note(notes)
    assert notes == [(SWITCH, 1), ("/set_internal_state", 2), (SWITCH, {"speculative_num_steps": 999})]


# ranks ---------------------------------------------------------------------------------------------------------------

DECISIONS = (
    Decision(Arm(3, drafts=True), (Source.DRAFT, Source.LOOKUP, Source.NONE), explores=True, keeps_draft=True),
    Decision(OFF, (Source.NONE,), park_rounds=256),
    Decision(Arm(11, drafts=False), (Source.LOOKUP, Source.NONE), keeps_draft=True),
)


@given(st.integers(1, 16), st.tuples(*[st.booleans()] * 3), st.integers(0, 256), st.lists(st.sampled_from(Source)))
def test_a_decision_survives_its_encoding(
    steps: int, flags: tuple[bool, bool, bool], park_rounds: int, sources: list[Source]
) -> None:
    drafts, explores, keeps_draft = flags
    decision = Decision(Arm(steps, drafts), tuple(sources), explores, keeps_draft, park_rounds)
    assert decode(encode(decision)) == decision


def _agree(rank: int, rendezvous: str, results: multiprocessing.Queue[tuple[int, list[object]]]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    agreement = RankAgreement(dist.group.WORLD, decides=rank == 0)
    agreed: list[object] = []
    for decision in DECISIONS:
        own = decision if rank == 0 else plain_decision(len(decision.sources))
        numbers, failed = agreement.agree(encode(own))
        agreed.append((decode(numbers), failed))
    agreed += [agreement.agree([rank + 1], failed=rank == failing) for failing in (0, 1)]
    results.put((rank, agreed))
    dist.destroy_process_group()


def test_all_ranks_take_what_rank_0_says_and_hear_of_a_failure_on_any(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    ranks = [context.Process(target=_agree, args=(rank, str(tmp_path / "rendezvous"), results)) for rank in range(2)]
    for process in ranks:
        process.start()
    agreed = dict(results.get(timeout=120) for _ in ranks)
    for process in ranks:
        process.join(60)
    expected = [*((decision, False) for decision in DECISIONS), ([1], True), ([1], True)]
    assert agreed == dict.fromkeys((0, 1), expected)
