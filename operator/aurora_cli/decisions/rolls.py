"""Decisions about all rolls of a speculator: pause and resume them, pin a version and unset the pin. Pure."""

from __future__ import annotations

from aurora_api.v1alpha1.status import RolloutPhase
from aurora_cli.decisions.change import Change, FieldChange
from aurora_cli.speculator import Speculator

PAUSED_FIELD, PIN_FIELD = "spec.rollout.paused", "spec.rollout.pin"
INITIAL_VERSION = 0


def pause(speculator: Speculator) -> Change:
    """Start no roll, and stop one under way before its next pod."""
    if speculator.paused:
        return Change((), "rolls are paused already")
    effect = "no roll starts until they are resumed; a version that fails is still rolled back"
    status = speculator.status.rollout
    if speculator.rolling is not None and status.phase in (RolloutPhase.CANARY, RolloutPhase.ROLLING):
        effect = (
            f"the roll of version {status.version} stops before its next pod ({status.updated} of {status.total} pods"
            " serve it), and no candidate is measured until it ends; a version that fails is still rolled back"
        )
    return Change((FieldChange(PAUSED_FIELD, False, True),), effect)


def resume(speculator: Speculator) -> Change:
    """Let rolls start and go on."""
    if not speculator.paused:
        return Change((), "rolls are not paused")
    notes = () if speculator.pin is None else (_pinned(speculator.pin, speculator.name),)
    return Change((FieldChange(PAUSED_FIELD, True, False),), "rolls start and go on", notes)


def pin(speculator: Speculator, version: int) -> Change:
    """Serve ``version`` until the pin is unset."""
    if speculator.pin == version:
        return Change((), f"version {version} is pinned already")
    active = speculator.active
    effect = f"pods swap to version {version} without a canary, and serve it until the pin is unset"
    if active == version:
        effect = f"pods go on with version {version}, and no other version is rolled out until the pin is unset"
    notes = []
    if not _has_passed(speculator, version):
        notes.append(
            f"the status does not show that version {version} passed its measurement; if it never did, the condition"
            " Degraded says PinRefused and nothing is rolled out"
        )
    return Change((FieldChange(PIN_FIELD, speculator.pin, version),), effect, tuple(notes))


def unpin(speculator: Speculator) -> Change:
    """Let newer candidates roll out again."""
    if speculator.pin is None:
        return Change((), "no version is pinned")
    notes = ("rolls stay paused",) if speculator.paused else ()
    effect = f"pods keep version {speculator.active if speculator.active is not None else speculator.pin}, and newer"
    return Change((FieldChange(PIN_FIELD, speculator.pin, None),), f"{effect} candidates roll out again", notes)


def _has_passed(speculator: Speculator, version: int) -> bool:
    """Whether the status shows that the version may be pinned. An older version may, although no status names it."""
    status = speculator.status
    named = {one.version for one in (status.active, status.previous) if one is not None}
    promoted = {entry.version for entry in status.history if entry.event == "Promoted"}
    return version in named | promoted | {INITIAL_VERSION}


def _pinned(version: int, name: str) -> str:
    return f"version {version} is pinned: no other version is rolled out before `unpin {name}`"
