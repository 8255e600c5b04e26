"""Tensor-parallel ranks decide alike: rank 0 broadcasts over a real process group."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from aurora_runtime.engine.arms import OFF, Arm, Source
from aurora_runtime.serving.speculation.policy import Decision
from aurora_runtime.serving.speculation.worker.rank_agreement import RankAgreement, decode, encode

DECISIONS = (
    Decision(Arm(3, drafts=True), (Source.DRAFT, Source.LOOKUP, Source.NONE), explores=True, keeps_draft=True),
    Decision(OFF, (Source.NONE,), park_rounds=256),
    Decision(Arm(11, drafts=False), (Source.LOOKUP, Source.NONE), keeps_draft=True),
)
SHARED = (b"1", b"", bytes(range(256)) * 100)


@given(st.integers(1, 16), st.tuples(*[st.booleans()] * 3), st.integers(0, 256), st.lists(st.sampled_from(Source)))
def test_a_decision_survives_its_encoding(
    steps: int, flags: tuple[bool, bool, bool], park_rounds: int, sources: list[Source]
) -> None:
    drafts, explores, keeps_draft = flags
    decision = Decision(Arm(steps, drafts), tuple(sources), explores, keeps_draft, park_rounds)
    assert decode(encode(decision)) == decision


def test_a_single_rank_takes_its_own_decision_and_bytes() -> None:
    assert RankAgreement(None, 0, decides=True).agree(DECISIONS[0], 3) == DECISIONS[0]
    assert RankAgreement(None, 0, decides=True).share(b"seed") == b"seed"


def _agree(rank: int, rendezvous: str, results: multiprocessing.Queue[tuple[int, tuple[list[object], ...]]]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    agreement = RankAgreement(dist.group.WORLD, 0, decides=rank == 0)
    agreed: list[object] = [agreement.agree(d if rank == 0 else None, len(d.sources)) for d in DECISIONS]
    all_failed = agreement.agree(DECISIONS[0] if rank == 0 else None, 3, lookup_failed=True)
    assert all_failed == DECISIONS[0], "no rank has lookup's tokens"
    with pytest.raises(RuntimeError, match="lookup failed on 1 of 2 ranks"):
        agreement.agree(DECISIONS[0] if rank == 0 else None, 3, lookup_failed=rank == 1)
    shared: list[object] = [agreement.share(data if rank == 0 else b"other") for data in SHARED]
    results.put((rank, (agreed, shared)))
    dist.destroy_process_group()


def test_all_ranks_take_the_decision_and_the_bytes_of_rank_0(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    ranks = [context.Process(target=_agree, args=(rank, str(tmp_path / "rendezvous"), results)) for rank in range(2)]
    for process in ranks:
        process.start()
    agreed = dict(results.get(timeout=120) for _ in ranks)
    for process in ranks:
        process.join(60)
    assert agreed == dict.fromkeys((0, 1), (list(DECISIONS), list(SHARED)))
