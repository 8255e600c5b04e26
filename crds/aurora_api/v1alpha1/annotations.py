"""Annotations of an AuroraSpeculator with which people decide: ``kubectl annotate aspec chat aurora.dev/abort=3``.

Invariant: each annotation names one version, so an old one has no effect on a newer version. Two name a second number.
That of a measurement names the attempt, so it asks for one measurement and not for one after the other. That of a loss
names the roll's epoch, so it confirms this loss and not the next one. Any other value is ignored.
"""

from __future__ import annotations

from typing import Final

from aurora_api import GROUP

PROMOTE_ANNOTATION: Final = f"{GROUP}/promote"
"""Live traffic no longer judges a roll of this version."""
ABORT_ANNOTATION: Final = f"{GROUP}/abort"
"""This version is rejected, and rolled back where it serves."""
MEASURE_ANNOTATION: Final = f"{GROUP}/measure"
"""``<version>-<attempt>``: this attempt at measuring the version does not wait for the delay after the failed one."""
START_OVER_ANNOTATION: Final = f"{GROUP}/start-over"
"""``<version>-<epoch>``: the records of this active version are lost at this epoch (``status.rollout.epoch``), and the
speculator may begin again at version 0."""
MAX_VERSION_DIGITS: Final = 8
"""The store's keys hold a version in eight digits. Python refuses to convert a text of more than 4,300 digits."""
MAX_VERSION: Final = 10**MAX_VERSION_DIGITS - 1


def annotated_version(text: str) -> int | None:
    """The version that an annotation's value names; None when it names none."""
    return int(text) if text.isdecimal() and len(text) <= MAX_VERSION_DIGITS else None


def annotated_attempt(text: str) -> tuple[int, int] | None:
    """Version and attempt that the value of :data:`MEASURE_ANNOTATION` names; None when it names none."""
    return _two_numbers(text)


def attempt_text(version: int, attempt: int) -> str:
    """The value of :data:`MEASURE_ANNOTATION` for an attempt."""
    return f"{version}-{attempt}"


def annotated_loss(text: str) -> tuple[int, int] | None:
    """Version and epoch that the value of :data:`START_OVER_ANNOTATION` names; None when it names none."""
    return _two_numbers(text)


def loss_text(version: int, epoch: int) -> str:
    """The value of :data:`START_OVER_ANNOTATION` for the loss of ``version`` at the status' ``epoch``."""
    return f"{version}-{epoch}"


def _two_numbers(text: str) -> tuple[int, int] | None:
    first, second = (annotated_version(part) for part in text.partition("-")[::2])
    return None if first is None or second is None else (first, second)
