"""Tensor-parallel ranks decide alike: rank 0 broadcasts over a real process group."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from aurora_runtime.engine.arms import OFF, Arm, Source
from aurora_runtime.serving.speculation.engine import RankAgreement, decode, encode
from aurora_runtime.serving.speculation.rounds import Decision, plain_decision

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


@pytest.mark.parametrize("failed", [False, True])
def test_a_single_rank_takes_its_own_numbers_and_failure(failed: bool) -> None:
    assert RankAgreement(None, decides=True).agree((1, 0), failed=failed) == ([1, 0], failed)


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
