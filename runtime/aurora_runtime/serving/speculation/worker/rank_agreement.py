"""All tensor-parallel ranks run the same round: rank 0 decides, and the others get its decision.

The ranks measure different times, so each would soon decide differently, and ranks with different batch shapes block
each other for ever. Lookup needs no broadcast: all ranks begin empty and commit the same tokens, and therefore propose
the same ones. An error in lookup that only some of them have ends the engine, because their texts then differ.

Invariant: every rank calls :meth:`RankAgreement.agree` once per decided round, in the same order. If an error on one
rank would make its passes or proposals differ from the others', that rank raises the error. SGLang then ends the whole
engine, and Kubernetes restarts it.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.distributed

from aurora_runtime.engine.arms import Arm, Source
from aurora_runtime.serving.speculation.policy import Decision

_SOURCES: Final = tuple(Source)
_HEADER: Final = 5


def encode(decision: Decision) -> torch.Tensor:
    """A decision for B requests as ``[5 + B]`` int64."""
    sources = [_SOURCES.index(source) for source in decision.sources]
    arm, flags = decision.arm, (decision.explores, decision.keeps_draft)
    return torch.tensor([arm.steps, arm.drafts, *flags, decision.park_rounds, *sources])


def decode(values: torch.Tensor) -> Decision:
    """The decision that :func:`encode` encoded."""
    steps, drafts, explores, keeps_draft, park_rounds, *sources = values.tolist()
    arm = Arm(steps, bool(drafts))
    return Decision(arm, tuple(_SOURCES[source] for source in sources), bool(explores), bool(keeps_draft), park_rounds)


class RankAgreement:
    """The decision of rank 0, on every rank.

    Args:
        group: the CPU process group of the tensor-parallel ranks; None for a single rank.
        first: the global rank of the group's rank 0.
        decides: whether this is rank 0.
    """

    def __init__(self, group: Any | None, first: int, *, decides: bool) -> None:
        self._group = group
        self._first = first
        self.decides = decides

    @classmethod
    def of_engine(cls) -> RankAgreement:
        """The agreement among SGLang's tensor-parallel ranks (sglang/srt/distributed/parallel_state.py:278)."""
        from sglang.srt.runtime_context import get_parallel

        group = get_parallel().tp_group
        if group.world_size == 1:
            return cls(None, 0, decides=True)
        return cls(group.cpu_group, group.ranks[0], decides=group.rank_in_group == 0)

    def share(self, data: bytes) -> bytes:
        """The bytes of rank 0. Every rank calls this in the same order; what other ranks pass is ignored."""
        if self._group is None:
            return data
        size = torch.tensor([len(data)])
        torch.distributed.broadcast(size, self._first, group=self._group)
        values = torch.zeros(int(size), dtype=torch.uint8)
        if not values.numel():
            return b""
        if self.decides:
            values = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        torch.distributed.broadcast(values, self._first, group=self._group)
        return values.numpy().tobytes()

    def agree(self, decision: Decision | None, requests: int, *, lookup_failed: bool = False) -> Decision:
        """The decision of rank 0 for a batch of ``requests``. Other ranks pass None.

        One all-reduce over the CPU group carries both the decision, because the other ranks add zeros, and the number
        of ranks where lookup failed.

        Raises RuntimeError on every rank when lookup failed on some and not on all.
        """
        if self._group is None:
            assert decision is not None
            return decision
        values = torch.zeros(_HEADER + requests, dtype=torch.int64) if decision is None else encode(decision)
        values = torch.cat([values, torch.tensor([int(lookup_failed)])])
        torch.distributed.all_reduce(values, group=self._group)
        failed, ranks = int(values[-1]), torch.distributed.get_world_size(self._group)
        if failed not in (0, ranks):
            raise RuntimeError(f"lookup failed on {failed} of {ranks} ranks: the engine must start again")
        return decode(values[:-1])
