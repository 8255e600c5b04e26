"""Decides what follows from a measurement that could not decide. Pure.

Invariants: a candidate that could not be decided never keeps a newer version waiting for a second measurement. Of two
candidates in a row, at most one gives way before its rounds are used up, so that a trainer that publishes often cannot
keep every candidate from a verdict.
"""

from __future__ import annotations

from typing import Final

from aurora_protocol.evidence_records import Evidence, MeasurementEnd
from aurora_store import Keys

MAX_MEASUREMENTS: Final = 2
"""Measurements of one candidate against one active version."""


def reason_to_end(evidence: Evidence, measurements: int, newer_version: int | None) -> str:
    """Why the candidate of ``evidence`` is not measured again. Empty: it is measured once more.

    Args:
        evidence: of the last measurement.
        measurements: finished measurements of the candidate against the active version, the last one included.
        newer_version: a version whose measurement may begin.
    """
    if newer_version is not None:
        return f"version {newer_version} is newer and is measured instead"
    if measurements >= MAX_MEASUREMENTS:
        return f"it was measured {measurements} times"
    if evidence.end is MeasurementEnd.HOPELESS and not used_cached_baseline(evidence):
        return "another measurement would hardly decide either"
    return ""


def used_cached_baseline(evidence: Evidence) -> bool:
    """Whether off was measured in an earlier attempt. The next attempt measures off anew, and so more precisely."""
    own = Keys.baseline(evidence.lineage, evidence.version, evidence.attempt)
    return evidence.baseline is not None and evidence.baseline.key != own


def gave_way(evidence: Evidence | None) -> bool:
    """Whether the measurement ended early because a newer version waited."""
    return evidence is not None and evidence.end is MeasurementEnd.GAVE_WAY
