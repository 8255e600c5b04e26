"""What the controller is told before a round, and what it decides.

Both are plain values, so that a decision can be broadcast between the ranks of a tensor-parallel group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from aurora_runtime.engine.arms import Arm, Source

CANNOT_DRAFT: Final = -1
"""The value of ``pending`` of a request that the draft cannot serve any more."""


class RequestOutlook(NamedTuple):
    """One running request before a round.

    Attributes:
        lookup_match: length in tokens of the suffix that lookup found elsewhere. 0: lookup has nothing.
        lookup_length: tokens that lookup can propose.
        pending: tokens by which the draft's KV cache is behind. The draft processes them before it can propose.
            :data:`CANNOT_DRAFT`: the draft cannot serve this request any more.
    """

    rid: str
    lookup_match: int
    lookup_length: int
    pending: int


@dataclass(frozen=True)
class Decision:
    """What a round does.

    Attributes:
        sources: the source of each request's proposal, in the batch's order.
        explores: whether the round runs to learn something rather than because its arm seems best.
    """

    arm: Arm
    sources: tuple[Source, ...]
    explores: bool
