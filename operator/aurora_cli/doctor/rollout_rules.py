"""Does a version that passed reach the pods, and what did people decide? Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Final

from aurora_api.v1alpha1.annotations import (
    ABORT_ANNOTATION,
    MEASURE_ANNOTATION,
    PROMOTE_ANNOTATION,
    START_OVER_ANNOTATION,
    annotated_pair,
)
from aurora_api.v1alpha1.status import CandidatePhase, RolloutPhase
from aurora_cli.doctor.facts import Snapshot
from aurora_cli.doctor.finding import Finding, Remedy, Severity

LONG_CANARY: Final = timedelta(minutes=10)
"""Long enough for two judgements of any usual traffic."""
RECENT: Final = timedelta(hours=24)
STATUS: Final = "kubectl aurora status {name} -n {ns}"
_CANARY = Remedy(
    "the canary has too little traffic to be judged by, or its judgement stays undecided",
    "Wait for traffic, promote or abort the version, or lower rollout.analysis.minRequests.",
    (
        STATUS,
        "kubectl aurora promote {name} {version} -n {ns}   # only if you vouch for the version",
        "kubectl aurora abort {name} {version} -n {ns}   # only if you reject the version",
    ),
    Severity.WARNING,
)
_HELD = Remedy(
    "the roll does not go on",
    "More pods than rollout.maxNotReady are not ready, or a swap does not get through.",
    (STATUS, "kubectl -n {ns} logs deployment/{name} -c agent --tail=50"),
    Severity.WARNING,
)
_PAUSED = Remedy(
    "rolls are paused, and a version waits for its roll",
    "",
    ("kubectl aurora resume {name} -n {ns}",),
    Severity.WARNING,
)
_PAUSED_NOTE = Remedy("rolls are paused", "", ("kubectl aurora resume {name} -n {ns}",), Severity.NOTE)
_PINNED = Remedy(
    "a version is pinned, so nothing else is measured or rolled out",
    "",
    ("kubectl aurora unpin {name} -n {ns}",),
    Severity.NOTE,
)
_ROLLED_BACK = Remedy(
    "a version was rolled back in the last 24 hours",
    "Live traffic disagreed with the measurement, or a pod could not load the draft. The version is not offered again.",
    ("kubectl aurora history {name} -n {ns}", "kubectl aurora evidence {name} {version} -n {ns}"),
    Severity.NOTE,
)
_IGNORED = Remedy(
    "an annotation names no version, so it does nothing",
    "Its value is a version number. That of measure also names the attempt, and that of start-over the epoch: 5-2.",
    ("kubectl -n {ns} annotate auroraspeculator {name} {annotation}-",),
    Severity.WARNING,
)


def rollout_stuck(snapshot: Snapshot) -> Iterator[Finding]:
    """A roll that has made no progress for a while."""
    rollout = snapshot.speculator.status.rollout
    since = rollout.progressed or rollout.started
    if since is None or snapshot.now - since < LONG_CANARY:
        return
    text = f"{rollout.phase} of version {rollout.version} on {rollout.updated} of {rollout.total} pods"
    evidence = f"{text}: {rollout.message}"
    if rollout.phase is RolloutPhase.CANARY and not snapshot.speculator.paused:
        yield _about(_CANARY.finding(snapshot, evidence), version=rollout.version)
    elif rollout.phase in (RolloutPhase.ROLLING, RolloutPhase.ROLLING_BACK):
        yield _HELD.finding(snapshot, evidence)


def people_decided(snapshot: Snapshot) -> Iterator[Finding]:
    """A pause or a pin, which explain why nothing is rolled out."""
    one = snapshot.speculator
    candidate = one.status.candidate
    if one.paused:
        validated = candidate is not None and candidate.phase is CandidatePhase.VALIDATED
        waits = one.status.rollout.phase is RolloutPhase.PAUSED or validated
        yield (_PAUSED if waits else _PAUSED_NOTE).finding(snapshot, "spec.rollout.paused is true")
    if one.pin is not None:
        yield _PINNED.finding(snapshot, f"spec.rollout.pin is {one.pin}")


def annotations_ignored(snapshot: Snapshot) -> Iterator[Finding]:
    """A decision that the operator does not see, because it names no version."""
    one = snapshot.speculator
    measured = annotated_pair(one.annotations.get(MEASURE_ANNOTATION, ""))
    given_up = annotated_pair(one.annotations.get(START_OVER_ANNOTATION, ""))
    read: dict[str, object] = {
        PROMOTE_ANNOTATION: one.promoted,
        ABORT_ANNOTATION: one.aborted,
        MEASURE_ANNOTATION: measured,
        START_OVER_ANNOTATION: given_up,
    }
    for annotation, named in read.items():
        if annotation in one.annotations and named is None:
            found = _IGNORED.finding(snapshot, f"{annotation} is {one.annotations[annotation]!r}")
            yield _about(found, annotation=annotation)


def rolled_back(snapshot: Snapshot) -> Iterator[Finding]:
    """The last roll that failed, if it was lately."""
    for entry in reversed(snapshot.speculator.status.history):
        if entry.event == "RolledBack" and snapshot.now - entry.time < RECENT:
            found = _ROLLED_BACK.finding(snapshot, f"version {entry.version}: {entry.message}")
            yield _about(found, version=entry.version)
            return


def _about(found: Finding, **values: object) -> Finding:
    """``found`` with further names in its commands."""
    commands = [
        re.sub(r"\{(\w+)\}", lambda match: str(values.get(match[1], match[0])), command) for command in found.commands
    ]
    return Finding(found.severity, found.title, found.evidence, found.advice, tuple(commands))
