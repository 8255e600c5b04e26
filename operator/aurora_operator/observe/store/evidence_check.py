"""Decides what stored evidence shows, from its raw samples and the bars of the spec. Pure.

A bucket writer can write evidence that says Pass. The operator therefore computes the verdict again
(:mod:`aurora_protocol.gate.recompute`), and keeps only its own verdict.

Invariants:

- No evidence passes unless its own samples clear the bars. Evidence that was not examined never passes.
- Only evidence that may matter is examined: that of versions newer than the active one, and of the pinned version.
- At most the :data:`MAX_EXAMINED` newest attempts of a version that say Pass are examined. An examination takes at most
  1450 ms of one core, and usually 25 ms.
- The texts of evidence are cut to what a status can hold, and no record is refused for its length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from aurora_protocol.evidence_records import Evidence, Verdict, VerdictKind
from aurora_protocol.gate import GatePolicy
from aurora_protocol.gate.recompute import least_policies, recomputed
from aurora_store.errors import bounded_text

MAX_EXAMINED: Final = 2
"""Attempts of one version. A version that passed is measured again only after another one became active."""
MAX_MESSAGE_CHARACTERS: Final = 1000
MAX_REASONS: Final = 32
"""Most reasons of a verdict that are kept. The gate gives one for each bar, and a few more."""


@dataclass(frozen=True, slots=True)
class Examination:
    """How the evidence of one version is examined, while the spec has the bars ``policy``."""

    policy: GatePolicy
    examines: bool = True
    """False: no promotion depends on the version, because it is not newer than the active one."""
    pinned: bool = False
    """A person pinned the version, which may have passed with other bars. Only those that no setting lowers count."""

    @classmethod
    def of(cls, version: int, policy: GatePolicy, *, active: int | None, pin: int | None) -> Examination:
        """The examination of ``version`` while ``active`` is active. None: no version is active yet."""
        pinned = version == pin
        return cls(policy, examines=pinned or active is None or version > active, pinned=pinned)

    def verdict_of(self, evidence: Evidence) -> Evidence:
        """``evidence`` with the operator's own verdict. Unexamined evidence keeps its ratios for the status."""
        if evidence.verdict.kind is not VerdictKind.PASS:
            return evidence
        if not self.examines:
            reasons = ("the operator did not examine it",)
            unexamined = Verdict(kind=VerdictKind.INCONCLUSIVE, reasons=reasons, ratios=evidence.verdict.ratios)
            return evidence.model_copy(update={"verdict": unexamined})
        return recomputed(evidence, least_policies(evidence) if self.pinned else (self.policy,))


@dataclass(frozen=True, slots=True)
class Examined:
    """One record of evidence after its examination."""

    examination: Examination
    evidence: Evidence
    """With the operator's own verdict, and without the raw samples, which take up to 50 times as much memory."""
    said_pass: bool
    """Whether the record says Pass, so that an examination takes time."""

    @classmethod
    def of(cls, record: Evidence, examination: Examination) -> Examined:
        """The outcome of ``examination``."""
        shown = _shown_parts(examination.verdict_of(record), examination.policy)
        return cls(examination, shown, record.verdict.kind is VerdictKind.PASS)


def _shown_parts(evidence: Evidence, policy: GatePolicy) -> Evidence:
    """The parts of evidence that the operator keeps. The status shows the ratios at the primary concurrency only."""
    baseline, environment = evidence.baseline, evidence.environment
    kept = None if baseline is None else baseline.model_copy(update={"samples": ()})
    reasons = tuple(bounded_text(reason) for reason in evidence.verdict.reasons[:MAX_REASONS])
    ratios = tuple(ratio for ratio in evidence.verdict.ratios if ratio.concurrency == policy.primary)
    names = {name: bounded_text(getattr(environment, name)) for name in ("hardware", "dtype")}
    return evidence.model_copy(
        update={
            "samples": (),
            "equality": (),
            "baseline": kept,
            "environment": environment.model_copy(update=names),
            "verdict": evidence.verdict.model_copy(update={"reasons": reasons, "ratios": ratios}),
            "end_message": bounded_text(evidence.end_message, MAX_MESSAGE_CHARACTERS),
        }
    )
