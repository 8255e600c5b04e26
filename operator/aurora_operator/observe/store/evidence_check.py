"""Decides what stored evidence shows, from its raw samples and the bars of the spec. Pure.

Whoever can write to the bucket can write evidence that says Pass. The operator therefore computes the verdict again
(:mod:`aurora_protocol.gate.recompute`), and keeps only its own verdict.

Invariants:

- No evidence passes unless its own samples clear the bars. Evidence that was not examined never passes.
- Only evidence that may matter is examined: that of versions newer than the active one, and of the pinned version.
  At most the :data:`MAX_EXAMINED` newest attempts of a version are, which bounds the computing time.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from aurora_protocol.evidence_records import Evidence, Verdict, VerdictKind
from aurora_protocol.gate import GatePolicy
from aurora_protocol.gate.recompute import least_policies, recomputed

MAX_EXAMINED: Final = 8
"""Attempts of one version. Attempts that measured are few: two against one active version."""


class Demand(Enum):
    """The bars that evidence of a version must clear."""

    SPEC = auto()
    """Those of the spec as it is now: the version may be rolled out."""
    LEAST = auto()
    """Those that no setting lowers: a person pinned the version, which may have passed with other settings."""
    NOTHING_COUNTS = auto()
    """The version is not newer than the active one, so no promotion depends on its evidence."""


@dataclass(frozen=True, slots=True)
class Examination:
    """How the evidence of one version is examined."""

    demand: Demand
    policy: GatePolicy | None = None
    """The bars of the spec, where the demand is these."""

    @classmethod
    def of(cls, version: int, policy: GatePolicy, *, active: int | None, pin: int | None) -> Examination:
        """The examination of ``version`` while ``active`` is active. None: no version is active yet."""
        if version == pin:
            return cls(Demand.LEAST)
        return cls(Demand.SPEC, policy) if active is None or version > active else NO_EXAMINATION

    def is_met_by(self, known: Examination) -> bool:
        """Whether evidence with the verdict of ``known`` need not be examined again."""
        return self == known or self.demand is Demand.NOTHING_COUNTS

    def verdict_of(self, evidence: Evidence) -> Evidence:
        """``evidence`` with the operator's own verdict. Unexamined evidence keeps its ratios for the status."""
        if evidence.verdict.kind is not VerdictKind.PASS:
            return evidence
        if self.demand is Demand.NOTHING_COUNTS:
            return evidence.model_copy(update={"verdict": _unexamined(evidence.verdict)})
        return recomputed(evidence, least_policies(evidence) if self.policy is None else (self.policy,))


NO_EXAMINATION: Final = Examination(Demand.NOTHING_COUNTS)


def _unexamined(verdict: Verdict) -> Verdict:
    return Verdict(kind=VerdictKind.INCONCLUSIVE, reasons=("the operator did not examine it",), ratios=verdict.ratios)
