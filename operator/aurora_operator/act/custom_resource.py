"""Writes the custom resource itself (status, the installation that acts, our finalizer), and posts Events about it.

Invariants:

- Each write replaces only the version of the resource that was observed. When two operators write, or an operator and a
  user, the second write fails, and that operator observes again.
- A state that flaps does not flood the namespace with Events. One about a condition is posted at most once in ten
  minutes for each reason, and any other at most once in an hour for each message. A restart forgets what was posted.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import kopf

from aurora_api import API_VERSION, KIND
from aurora_api.v1alpha1.status import OperatorIdentity, SpeculatorStatus
from aurora_operator.children.metadata import FINALIZER, Owner, has_finalizer
from aurora_operator.errors import KubernetesError
from aurora_operator.kubernetes_api import KubernetesApi, Object
from aurora_operator.plan import EventNote


async def write_status(api: KubernetesApi, owner: Owner, status: SpeculatorStatus) -> None:
    """Raises :class:`Conflict` when the resource changed since ``owner`` was read, :class:`KubernetesError`."""
    body = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {
            "name": owner.name,
            "namespace": owner.namespace,
            "uid": owner.uid,
            "resourceVersion": owner.resource_version,
        },
        "status": status.model_dump(mode="json", by_alias=True, exclude_none=True),
    }
    await api.apply(body, subresource="status")


async def claim(api: KubernetesApi, stored: Object, installation: OperatorIdentity) -> Object:
    """Write into the status of ``stored`` that this installation acts. Returns the resource as it is stored then.

    Raises :class:`Conflict` when the resource changed since it was read, :class:`KubernetesError`.
    """
    named = installation.model_dump(mode="json", by_alias=True)
    written = await api.patch(stored, {"status": {"operator": named}}, subresource="status")
    return {"apiVersion": API_VERSION, "kind": KIND, **written}


async def set_finalizer(api: KubernetesApi, stored: Object, *, wanted: bool) -> Object:
    """Add or remove our finalizer, and leave those of others. Returns the resource as it is stored then.

    The API server deletes a resource that is being deleted once its last finalizer is removed. Raises
    :class:`Conflict` when the resource changed since it was read, :class:`KubernetesError`.
    """
    if has_finalizer(stored) is wanted:
        return stored
    others = [finalizer for finalizer in stored["metadata"].get("finalizers") or () if finalizer != FINALIZER]
    finalizers = [*others, FINALIZER] if wanted else others
    written = await api.patch(stored, {"metadata": {"finalizers": finalizers}})
    if has_finalizer(written) is not wanted:
        raise KubernetesError(f"an admission webhook changed the finalizer {FINALIZER}; find it")
    return {"apiVersion": API_VERSION, "kind": KIND, **written}


# Events ---------------------------------------------------------------------------------------------------------------


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
