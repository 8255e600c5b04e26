"""Decisions about one version: promote it without waiting for traffic, or reject it. Pure.

Invariant: a decision that the operator would ignore is refused with the reason, instead of leaving an annotation that
does nothing now and surprises somebody later. An annotation holds one version, so a decision that still waits for its
effect is not replaced by one about another version. The exception is an abort of the version that is being rolled out,
because that version serves users: it replaces a waiting abort, and a note says how to repeat the other abort.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from aurora_api.v1alpha1.annotations import ABORT_ANNOTATION, PROMOTE_ANNOTATION
from aurora_api.v1alpha1.status import CandidatePhase, RolloutPhase
from aurora_cli.decisions.change import Change, FieldChange
from aurora_cli.errors import Refused
from aurora_cli.speculator import Speculator

_DECIDED = frozenset({CandidatePhase.REJECTED, CandidatePhase.INCONCLUSIVE})
_DONE = {ABORT_ANNOTATION: "rejected", PROMOTE_ANNOTATION: "active or rejected"}


def promote(speculator: Speculator, version: int | None = None, kubectl_flags: Sequence[str] = ()) -> Change:
    """Vouch for ``version``, or without it for the version of the roll under way. Raises :class:`Refused`.

    Args:
        kubectl_flags: the flags with which kubectl reaches the speculator's cluster, for a command that is printed.
    """
    version = _meant(speculator, version, "promote", speculator.rolling)
    if speculator.aborted == version or version in speculator.status.rejected:
        raise Refused(f"version {version} was rejected and is never offered again; promote a later version")
    if phase := _ended(speculator, version):
        raise Refused(f"version {version} is {phase}: it is never rolled out, and a promotion has no effect on it")
    if version == speculator.active and version != speculator.rolling:
        return Change((), f"version {version} is active, and its roll has ended")
    if speculator.promoted == version:
        return Change((), f"version {version} is promoted already")
    if _waits(speculator, PROMOTE_ANNOTATION, speculator.promoted):
        raise _kept(speculator, PROMOTE_ANNOTATION, kubectl_flags)
    fields = (FieldChange(PROMOTE_ANNOTATION, speculator.annotations.get(PROMOTE_ANNOTATION), str(version)),)
    return Change(fields, _promotion_effect(speculator, version), tuple(_delays(speculator)))


def _promotion_effect(speculator: Speculator, version: int) -> str:
    if version == speculator.active:
        return f"live traffic no longer judges version {version}, and its watch ends"
    if version == speculator.rolling:
        return f"live traffic no longer judges the canary of version {version}, and the other pods follow"
    return f"once version {version} has passed its measurement, it is rolled out without a judgement by live traffic"


def _delays(speculator: Speculator) -> list[str]:
    """The reasons why a promotion has no effect yet."""
    name, found = speculator.name, []
    if speculator.pin is not None:
        found.append(f"version {speculator.pin} is pinned: no other version is rolled out before `unpin {name}`")
    if speculator.paused:
        found.append(f"rolls are paused: nothing is rolled out before `resume {name}`")
    return found


def abort(speculator: Speculator, version: int | None = None, kubectl_flags: Sequence[str] = ()) -> Change:
    """Reject ``version``, or without it the version of the roll under way. Raises :class:`Refused`.

    The active version is never meant without being named, because pods would leave it.

    Args:
        kubectl_flags: the flags with which kubectl reaches the speculator's cluster, for a command that is printed.
    """
    in_roll = speculator.rolling if speculator.rolling != speculator.active else None
    version = _meant(speculator, version, "abort", in_roll)
    if speculator.aborted == version or version in speculator.status.rejected:
        return Change((), f"version {version} is rejected already")
    if phase := _ended(speculator, version):
        return Change((), f"version {version} is {phase} already, and is never rolled out")
    effect = _abort_effect(speculator, version)
    notes = []
    if _waits(speculator, ABORT_ANNOTATION, speculator.aborted):
        if not _is_rolled_out(speculator, version):
            raise _kept(speculator, ABORT_ANNOTATION, kubectl_flags)
        notes.append(
            f"this withdraws the abort of version {speculator.aborted}, which waits for its effect, so version"
            f" {speculator.aborted} may be rolled out next; repeat its abort with `abort {speculator.name}"
            f" {speculator.aborted}` as soon as `status {speculator.name}` shows that version {version} is rejected"
        )
    fields = [FieldChange(ABORT_ANNOTATION, speculator.annotations.get(ABORT_ANNOTATION), str(version))]
    if speculator.promoted == version:
        fields.append(FieldChange(PROMOTE_ANNOTATION, speculator.annotations[PROMOTE_ANNOTATION], None))
    return Change(fields, f"{effect}; version {version} is never offered again", tuple(notes))


def _abort_effect(speculator: Speculator, version: int) -> str:
    status = speculator.status
    if version == speculator.active:
        if speculator.pin is not None:
            raise Refused(
                f"version {version} is active and a version is pinned, so an abort has no effect:"
                f" run `unpin {speculator.name}`, or pin another version"
            )
        if status.previous is None:
            raise Refused(f"version {version} is active and there is no previous version to return to; pin another one")
        return f"pods return from version {version} to version {status.previous.version}"
    if _is_rolled_out(speculator, version):
        return f"the roll of version {version} ends, and its pods return to version {speculator.active}"
    return f"version {version} is not rolled out"


def _is_rolled_out(speculator: Speculator, version: int) -> bool:
    """Whether ``version`` serves, or is about to serve, because of a roll that has not turned back."""
    return version == speculator.rolling and speculator.status.rollout.phase is not RolloutPhase.ROLLING_BACK


def _kept(speculator: Speculator, annotation: str, kubectl_flags: Sequence[str]) -> Refused:
    """The refusal to replace a decision that still waits for its effect."""
    name, version = speculator.name, speculator.annotations[annotation]
    change = ("annotate", "auroraspeculator", name, f"{annotation}-")
    return Refused(
        f"{annotation} names version {version}, waits for its effect, and holds one version only: decide again once"
        f" `status {name}` shows that version {version} is {_DONE[annotation]}, or withdraw that decision:",
        shlex.join(("kubectl", *kubectl_flags, "-n", speculator.namespace, *change)),
    )


def _waits(speculator: Speculator, annotation: str, version: int | None) -> bool:
    """Whether the decision about the annotation's ``version`` still waits for its effect."""
    status = speculator.status
    if version is None:
        return False
    if version not in speculator.open_versions() or version in status.rejected or _ended(speculator, version):
        return False
    if version != speculator.active:
        return True
    return status.previous is not None if annotation == ABORT_ANNOTATION else version == speculator.rolling


def _meant(speculator: Speculator, version: int | None, verb: str, default: int | None) -> int:
    """The version that a command is about. Raises :class:`Refused` when a decision about it has no effect."""
    name, known = speculator.name, sorted({*speculator.open_versions(), *speculator.status.rejected})
    listed = ", ".join(map(str, known)) or "none"
    if version is None:
        if default is None:
            raise Refused(f"no version of {name} is being rolled out: name the version (known versions: {listed})")
        return default
    if version not in known:
        previous = speculator.status.previous
        if previous is not None and previous.version == version:
            raise Refused(f"version {version} is the previous one; to return to it, run `pin {name} {version}`")
        raise Refused(f"{verb} has no effect on version {version} of {name} now: the known versions are {listed}")
    return version


def _ended(speculator: Speculator, version: int) -> str:
    """The phase in which the candidate ``version`` ended; empty when it did not."""
    candidate = speculator.status.candidate
    ended = candidate is not None and candidate.version == version and candidate.phase in _DECIDED
    return candidate.phase.value if ended and candidate is not None else ""
