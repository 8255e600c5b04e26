"""Posts Kubernetes Events on the custom resource, through kopf, which posts in the background and retries.

Invariant: a state that flaps does not flood the namespace. An Event about a condition is posted at most once in ten
minutes for each reason, and any other at most once in an hour for each message. A restart forgets what was posted.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import kopf

from aurora_api import API_VERSION, KIND
from aurora_operator.children.metadata import Owner
from aurora_operator.plan import EventNote

log = logging.getLogger(__name__)

CONDITION_SECONDS, MESSAGE_SECONDS = 600.0, 3600.0
MAX_REMEMBERED = 256
"""Events of one speculator that are remembered, newest first."""


class EventRecorder:
    """Posts the Events of one speculator.

    Args:
        post: takes the object and ``type``, ``reason`` and ``message``.
        clock: monotonic seconds.
    """

    def __init__(self, post: Callable[..., Any] = kopf.event, clock: Callable[[], float] = time.monotonic) -> None:
        self._post, self._clock = post, clock
        self._posted: dict[tuple[str, str, int, str], float] = {}
        """Reason, type, generation and message -> when the next such Event may be posted."""

    def post(self, note: EventNote, owner: Owner) -> None:
        """Log ``note`` and post it as an Event, unless it was posted a short while ago."""
        kind = "Warning" if note.warning else "Normal"
        # An edit of the spec makes each Event news again.
        key = (note.reason, kind, owner.generation, "" if note.about_condition else note.message)
        if self._clock() < self._posted.get(key, 0.0):
            return
        self._posted.pop(key, None)
        self._posted[key] = self._clock() + (CONDITION_SECONDS if note.about_condition else MESSAGE_SECONDS)
        if len(self._posted) > MAX_REMEMBERED:
            del self._posted[next(iter(self._posted))]
        log.info("%s: %s: %s", owner.full_name, note.reason, note.message)
        metadata = {"name": owner.name, "namespace": owner.namespace, "uid": owner.uid}
        speculator = {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata}
        self._post(speculator, type=kind, reason=note.reason, message=note.message)
