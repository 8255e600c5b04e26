"""The judgements: one value type for each. Their docstrings are the table of meanings in ARCHITECTURE.md."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pin:
    """A person pinned another version than the active one, and the pinned version can become active now."""

    version: int


@dataclass(frozen=True)
class PinLater:
    """A person pinned a version, but a third version would serve. All pods return to the active version first."""

    reason: str


@dataclass(frozen=True)
class Reject:
    """The version failed, or a person aborted it. The version is never rolled out again."""

    reason: str


@dataclass(frozen=True)
class AlreadyRejected:
    """The channel no longer has the version active, or rejects it, and the status does not say so yet."""

    reason: str


@dataclass(frozen=True)
class AlreadyActive:
    """The channel calls the version active already, but the status does not show that yet."""


@dataclass(frozen=True)
class AlreadyPinned:
    """The channel has a pinned version active already, but the status does not show that yet."""


@dataclass(frozen=True)
class Stop:
    """The roll, or the watch, must end without blame for the version."""

    reason: str


@dataclass(frozen=True)
class Pause:
    """A person pauses rolls, or pinned a version."""

    reason: str


@dataclass(frozen=True)
class Resume:
    """The reason for the pause is gone."""


@dataclass(frozen=True)
class Hold:
    """More pods than rollout.maxNotReady are not ready: ask no pod.

    The progress deadline starts again afterwards if that many pods without the version are not ready.
    """

    reason: str


@dataclass(frozen=True)
class Wait:
    """Nothing is wrong, but the roll cannot go on yet."""

    reason: str


@dataclass(frozen=True)
class Start:
    """A version passed its measurement, and every pod is ready for its roll."""

    version: int


@dataclass(frozen=True)
class ThirdVersion:
    """A pod came up with neither the active nor the rolled version."""


@dataclass(frozen=True)
class NoBaseline:
    """The baseline with the active version is not measured yet."""


@dataclass(frozen=True)
class Vouch:
    """A person vouches for the version that is watched."""


@dataclass(frozen=True)
class Pass:
    """The phase has reached its goal."""

    reason: str = ""


@dataclass(frozen=True)
class Proceed:
    """Nothing is wrong: go on with the work of the phase."""


Judgement = (
    Pin
    | PinLater
    | Reject
    | AlreadyRejected
    | AlreadyActive
    | AlreadyPinned
    | Stop
    | Pause
    | Resume
    | Hold
    | Wait
    | Start
    | ThirdVersion
    | NoBaseline
    | Vouch
    | Pass
    | Proceed
)
