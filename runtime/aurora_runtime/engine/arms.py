"""The choices of one decode round: where proposals come from, and how many tokens the round verifies.

The worker, the models and the reports name a round's shape with :class:`Arm`, so that all of them count the same
thing. Invariant: an arm never needs more than its own numbers; which request proposes what is a decision's business.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Source(StrEnum):
    """Where a request's proposed tokens come from."""

    NONE = "none"
    """No proposal. A round wider than one token verifies filler tokens for this request."""
    LOOKUP = "lookup"
    """Tokens that followed the request's last tokens elsewhere."""
    DRAFT = "draft"
    """The EAGLE-3 chain."""


@dataclass(frozen=True, order=True)
class Arm:
    """The shape of a round.

    Attributes:
        steps: proposed tokens per request.
        drafts: whether the draft runs, for ``steps`` steps. Without the draft, only lookup proposes.
    """

    steps: int
    drafts: bool

    def __post_init__(self) -> None:
        if self.steps < 0 or (self.drafts and self.steps == 0):
            raise ValueError(f"an arm with {self.steps} steps and drafts={self.drafts} does not exist")

    @property
    def width(self) -> int:
        """Tokens per request that the target verifies: the proposed tokens and the request's last token."""
        return self.steps + 1

    @property
    def name(self) -> str:
        """A name for metrics and reports: ``off``, ``lookup-5`` or ``draft-3``."""
        if self == OFF:
            return "off"
        return f"{'draft' if self.drafts else 'lookup'}-{self.steps}"


OFF: Final = Arm(0, False)
"""A round without proposals."""
STEP_LADDER: Final = (1, 3, 7)
"""Numbers of steps that are offered. Each costs the engine memory for a runtime state, so neighbours differ much."""


def arms_within(draft_steps: int, lookup_steps: int, ladder: Iterable[int] = STEP_LADDER) -> tuple[Arm, ...]:
    """All arms within the bounds, in ascending order, :data:`OFF` first.

    The bounds themselves are always offered, also between two rungs of the ladder. A bound of 0 excludes a source.
    """

    def rungs(bound: int) -> list[int]:
        return sorted({step for step in ladder if 0 < step <= bound} | ({bound} if bound > 0 else set()))

    lookup = [Arm(steps, drafts=False) for steps in rungs(lookup_steps)]
    draft = [Arm(steps, drafts=True) for steps in rungs(draft_steps)]
    return (OFF, *sorted(lookup + draft))
