"""All tensor-parallel ranks run the same round: rank 0 decides, and the others get its decision.

The ranks measure different times, so each would soon decide differently, and ranks with different batch shapes block
each other for ever. Lookup needs no broadcast: all ranks begin empty and commit the same tokens, and therefore propose
the same ones. If that fails on any rank, all of them hear of it with the next agreement.

Invariant: every rank calls :meth:`RankAgreement.agree` once per decided round and prefill, in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
import torch.distributed

from aurora_runtime.engine.arms import Arm, Source
from aurora_runtime.serving.speculation.policy import Decision

_SOURCES: Final = tuple(Source)


def encode(decision: Decision) -> list[int]:
    """A decision for B requests as 5 + B numbers."""
    arm, flags = decision.arm, (decision.explores, decision.keeps_draft)
    numbers = [arm.steps, arm.drafts, *flags, decision.park_rounds]
    return [*map(int, numbers), *map(_SOURCES.index, decision.sources)]


def decode(numbers: Sequence[int]) -> Decision:
    """The decision that :func:`encode` encoded."""
    steps, drafts, explores, keeps_draft, park_rounds, *sources = numbers
    arm = Arm(steps, bool(drafts))
    return Decision(arm, tuple(_SOURCES[source] for source in sources), bool(explores), bool(keeps_draft), park_rounds)


class RankAgreement:
    """What rank 0 says, on every rank.

    Args:
        group: the CPU process group of the tensor-parallel ranks; None for a single rank.
        decides: whether this is rank 0.
    """

    def __init__(self, group: Any | None, *, decides: bool) -> None:
        self._group = group
        self.decides = decides

    @classmethod
    def of_engine(cls) -> RankAgreement:
        """The agreement among SGLang's tensor-parallel ranks (sglang/srt/distributed/parallel_state.py:278)."""
        from sglang.srt.runtime_context import get_parallel

        group = get_parallel().tp_group
        if group.world_size == 1:
            return cls(None, decides=True)
        return cls(group.cpu_group, decides=group.rank_in_group == 0)

    @property
    def is_single(self) -> bool:
        return self._group is None

    def agree(self, numbers: Sequence[int], *, failed: bool = False) -> tuple[list[int], bool]:
        """The numbers of rank 0, and whether any rank failed. Other ranks pass as many numbers, which are ignored."""
        if self._group is None:
            return list(numbers), failed
        own = numbers if self.decides else [0] * len(numbers)
        values = torch.tensor([*own, int(failed)])
        torch.distributed.all_reduce(values, group=self._group)
        *agreed, failures = values.tolist()
        return agreed, failures > 0
