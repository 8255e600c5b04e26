"""Two processes under torchrun learn what one process learns, and hold the same bits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from aurora_runtime.training.data.examples import examples_of
from aurora_runtime.training.optim.shared_session import deal_among_ranks
from tests.unit.training import ranked, tiny

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of each of two ranks after the steps of :mod:`ranked`."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*TORCHRUN, "-m", ranked.__name__, str(folder)], env=environment, check=True, capture_output=True, timeout=300
    )
    return load_file(folder / "rank0.safetensors"), load_file(folder / "rank1.safetensors")


def learnt(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t for name, t in tensors.items() if name.startswith(("weight.", "exp_avg", "vocabulary"))}


def test_all_ranks_hold_the_same_weights_moments_and_map(ranks: tuple[dict[str, Tensor], dict[str, Tensor]]) -> None:
    leader, follower = (learnt(tensors) for tensors in ranks)
    assert leader.keys() == follower.keys()
    assert sum(name.startswith("exp_avg.") for name in leader) > 10
    assert int(follower["vocabulary"][0]) == tiny.VOCAB - tiny.DRAFT_VOCAB, "the ranks hold the changed map"
    assert all(torch.equal(leader[name], follower[name]) for name in leader)


def test_two_ranks_learn_what_one_process_learns(
    ranks: tuple[dict[str, Tensor], dict[str, Tensor]], tmp_path: Path
) -> None:
    together, _ = ranks
    session, batches = ranked.session_and_batches(tmp_path, None)
    begun = {name: t.clone() for name, t in learnt(session.state()).items()}
    losses = ranked.learn(session, batches)
    alone = session.state()
    assert together["counters"].tolist() == alone["counters"].tolist()
    assert together["losses"].tolist() == pytest.approx(losses, rel=2e-4)
    for name, tensor in learnt(alone).items():
        moved = (tensor - begun[name] if name in begun else tensor).float().norm()
        difference = (together[name].float() - tensor.float()).norm()
        assert difference < 0.02 * moved, name  # products in bf16, whose sums are split otherwise


def test_every_example_goes_to_one_rank_and_no_rank_is_left_without() -> None:
    examples = [e for seed in range(9) for e in examples_of(tiny.trace(seed, answer=4 + 3 * seed), tiny.VOCAB)]
    shares = deal_among_ranks(examples, 3)
    assert sorted(id(e) for share in shares for e in share) == sorted(id(e) for e in examples)
    slots = [sum(e.slots for e in share) for share in shares]
    assert max(slots) - min(slots) <= max(e.slots for e in examples)
    (own,), (other,) = deal_among_ranks(examples[:1], 2)
    assert own is examples[0]
    assert not other.known.any()
    assert len(other.rejected) == 0
