"""Decides what stored evidence shows, from its raw samples and the bars of the spec. Pure.

A bucket writer can write evidence that says Pass. The operator therefore computes the verdict again
(:mod:`aurora_protocol.gate.recompute`), and keeps only its own verdict.

Invariants:

- No evidence passes unless its own samples clear the bars. Evidence that was not examined never passes.
- Only evidence that may matter is examined: that of versions newer than the active one, and of the pinned version.
- At most the :data:`MAX_EXAMINED` newest attempts of a version that say Pass are examined, and each ratio of a
  record is estimated once, however often the bars change. A resource needs at most 10 versions. An examination takes
  at most 1450 ms of one core (:mod:`aurora_protocol.gate.recompute`), so all evidence takes at most 29 s. A read ends
  at its deadline after the examination under way. The next one goes on, because examined evidence is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from pydantic import TypeAdapter

from aurora_operator.observe.store.bounded_records import bounded_evidence
from aurora_protocol.evidence_records import Evidence, RatioEstimate, Verdict, VerdictKind
from aurora_protocol.gate import GatePolicy
from aurora_protocol.gate.recompute import least_policies, recomputed
from aurora_protocol.gate.verdict import Ratios

_RATIOS = TypeAdapter(tuple[RatioEstimate, ...])
MAX_EXAMINED: Final = 2
"""Attempts of one version. A version that passed is measured again only after another one became active."""


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

    def verdict_of(self, evidence: Evidence, ratios: Ratios | None = None) -> Evidence:
        """``evidence`` with the operator's own verdict. Unexamined evidence keeps its ratios for the status.

        Args:
            ratios: those of an earlier examination. Those estimated now are added.
        """
        if evidence.verdict.kind is not VerdictKind.PASS:
            return evidence
        if self.demand is Demand.NOTHING_COUNTS:
            return evidence.model_copy(update={"verdict": _unexamined(evidence.verdict)})
        policies = least_policies(evidence) if self.policy is None else (self.policy,)
        return recomputed(evidence, policies, ratios)


NO_EXAMINATION: Final = Examination(Demand.NOTHING_COUNTS)


@dataclass(frozen=True, slots=True)
class Examined:
    """One record of evidence after its examination."""

    examination: Examination
    policy: GatePolicy
    """The bars of the spec at that time."""
    evidence: Evidence
    """With the operator's own verdict."""
    said_pass: bool
    """Whether the record says Pass, so that an examination takes time."""
    ratios: bytes
    """All ratios that its examinations estimated, as JSON, which takes a quarter of the memory of the objects.

    The record never changes, so they hold for the next bars too.
    """

    @classmethod
    def of(cls, record: Evidence, examination: Examination, policy: GatePolicy, former: Examined | None) -> Examined:
        """The outcome of ``examination``, while the spec has the bars ``policy``.

        Args:
            former: the former outcome for this record, if any.
        """
        known = () if former is None else _RATIOS.validate_json(former.ratios)
        ratios: Ratios = {(ratio.numerator, ratio.denominator, ratio.concurrency): ratio for ratio in known}
        shown = _shown_parts(examination.verdict_of(record, ratios), policy)
        kept = _RATIOS.dump_json(tuple(ratio for ratio in ratios.values() if ratio is not None))
        return cls(examination, policy, shown, record.verdict.kind is VerdictKind.PASS, kept)

    def answers(self, examination: Examination, policy: GatePolicy) -> bool:
        """Whether ``examination`` is not needed any more, while the spec has the bars ``policy``."""
        return self.policy == policy and examination.is_met_by(self.examination)


ExaminedEvidence = dict[str, Examined]
"""Key -> evidence that was examined."""


def _unexamined(verdict: Verdict) -> Verdict:
    return Verdict(kind=VerdictKind.INCONCLUSIVE, reasons=("the operator did not examine it",), ratios=verdict.ratios)


def _shown_parts(evidence: Evidence, policy: GatePolicy) -> Evidence:
    """The parts of evidence that the operator keeps. The raw samples take up to 50 times as much memory.

    The status shows the ratios at the primary concurrency only.
    """
    baseline = evidence.baseline
    kept = None if baseline is None else baseline.model_copy(update={"samples": ()})
    ratios = tuple(ratio for ratio in evidence.verdict.ratios if ratio.concurrency == policy.primary)
    verdict = evidence.verdict.model_copy(update={"ratios": ratios})
    shown = {"samples": (), "equality": (), "baseline": kept, "verdict": verdict}
    return bounded_evidence(evidence.model_copy(update=shown))
