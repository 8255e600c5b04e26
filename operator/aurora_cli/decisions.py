"""What a person decides, as patches of the resource. Pure: a speculator and a decision give a change, or a refusal.

Invariants: a decision that the operator would ignore is refused with the reason, instead of leaving an annotation that
does nothing now and surprises somebody later. A decision that is made already changes nothing, and is no failure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from aurora_api.v1alpha1.annotations import ABORT_ANNOTATION
from aurora_api.v1alpha1.status import CandidatePhase
from aurora_cli.errors import Refused
from aurora_cli.speculator import Speculator

_DECIDED: Final = frozenset({CandidatePhase.REJECTED, CandidatePhase.INCONCLUSIVE})


@dataclass(frozen=True)
class Change:
    """The merge patch of a decision (RFC 7386), and what follows from it."""

    patch: dict[str, Any]
    """Empty: nothing is to be changed."""
    effect: str
    """One sentence: what the operator does now. With an empty patch: why nothing is to be changed."""
    notes: Sequence[str] = ()
    """Further facts for the person, such as a pause that delays the effect."""


def _rollout(field: str, value: Any) -> dict[str, Any]:
    return {"spec": {"rollout": {field: value}}}


def _annotation(name: str, value: str) -> dict[str, Any]:
    return {"metadata": {"annotations": {name: value}}}


def pause(one: Speculator) -> Change:
    """Start no roll, and stop one under way before its next pod."""
    if one.paused:
        return Change({}, "rolls are paused already")
    rollout, effect = one.status.rollout, "no roll starts until they are resumed"
    if one.rolling is not None:
        pods = f"{rollout.updated} of {rollout.total} pods serve it"
        effect = f"the roll of version {rollout.version} stops before its next pod ({pods})"
    return Change(_rollout("paused", True), f"{effect}; a version that fails is still rolled back")


def resume(one: Speculator) -> Change:
    """Let rolls start and go on."""
    if not one.paused:
        return Change({}, "rolls are not paused")
    return Change(_rollout("paused", False), "rolls start and go on", _hindrances(one))


def pin(one: Speculator, version: int) -> Change:
    """Serve ``version`` until the pin is unset."""
    if one.pin == version:
        return Change({}, f"version {version} is pinned already")
    if version in one.status.rejected:
        raise Refused(f"version {version} was rejected and is never offered again; pin another version")
    if phase := _ended(one, version):
        raise Refused(f"version {version} is {phase} and did not pass its measurement; pin another version")
    if one.has_expired(version):
        raise Refused(f"the weights of version {version} expired (training.draftHistoryLimit); pin another version")
    effect = f"pods swap to version {version} without a canary, and serve it until the pin is unset"
    if one.active == version:
        effect = f"pods go on with version {version}, and no other version is rolled out until the pin is unset"
    return Change(_rollout("pin", version), effect)


def unpin(one: Speculator) -> Change:
    """Let newer candidates roll out again."""
    if one.pin is None:
        return Change({}, "no version is pinned")
    notes = ("rolls stay paused",) if one.paused else ()
    return Change(_rollout("pin", None), "newer candidates are measured and rolled out again", notes)


def abort(one: Speculator, version: int | None = None) -> Change:
    """Reject ``version``, or without it the version of the roll under way. Raises :class:`Refused`.

    The active version is never meant without being named, because pods would leave it.
    """
    if version is None:
        if one.rolling is None or one.rolling == one.active:
            raise Refused(f"no version of {one.name} is being rolled out: name the version")
        version = one.rolling
    if one.aborted == version or version in one.status.rejected:
        return Change({}, f"version {version} is rejected already")
    if phase := _ended(one, version):
        return Change({}, f"version {version} is {phase} already, and is never rolled out")
    if version not in (known := sorted(set(one.open_versions()))):
        listed = ", ".join(map(str, known)) or "none"
        raise Refused(f"an abort of version {version} of {one.name} has no effect: the known versions are {listed}")
    effect = f"{_abort_effect(one, version)}; version {version} is never offered again"
    waits = one.aborted is not None and one.aborted in known and one.aborted not in one.status.rejected
    notes = (f"this withdraws the abort of version {one.aborted}; repeat it later",) if waits else ()
    return Change(_annotation(ABORT_ANNOTATION, str(version)), effect, notes)


def _abort_effect(one: Speculator, version: int) -> str:
    if version == one.active:
        if one.pin is not None:
            raise Refused(f"version {version} is active and version {one.pin} is pinned: run `unpin {one.name}` first")
        if one.status.previous is None:
            raise Refused(f"version {version} is active and there is no previous version to return to; pin another one")
        return f"pods return from version {version} to version {one.status.previous.version}"
    if version == one.rolling:
        return f"the roll of version {version} ends, and its pods return to version {one.active}"
    return f"version {version} is not rolled out"


def _hindrances(one: Speculator) -> tuple[str, ...]:
    """What keeps other versions from being measured and rolled out."""
    return () if one.pin is None else (f"version {one.pin} is pinned: nothing else begins before `unpin {one.name}`",)


def _ended(one: Speculator, version: int) -> str:
    """The phase in which the candidate ``version`` ended without passing; empty when it did not."""
    candidate = one.status.candidate
    ended = candidate is not None and candidate.version == version and candidate.phase in _DECIDED
    return candidate.phase.value if ended and candidate is not None else ""
