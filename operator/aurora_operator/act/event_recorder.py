"""Posts Kubernetes Events on the custom resource.

Invariant: a state that flaps does not flood the namespace. An Event with the same message is posted at most once in
each hour of the clock. An Event whose message holds figures is posted at most once per reason and type in a period of
its own (:attr:`EventNote.period_per_reason`).
"""

from __future__ import annotations

import hashlib
import logging
from datetime import UTC, datetime, timedelta

from aurora_api import API_VERSION, KIND
from aurora_operator.children.owner import Owner
from aurora_operator.errors import Conflict, KubernetesError, NamespaceEnds
from aurora_operator.io_pools import call_api
from aurora_operator.kubernetes_api import KubernetesApi, Object
from aurora_operator.operator_config import OPERATOR_NAME
from aurora_operator.plan import EventNote

log = logging.getLogger(__name__)

MESSAGE_PERIOD = timedelta(hours=1)
MAX_MESSAGE_CHARACTERS = 1024
"""The API server's limit for an Event's message."""


class EventRecorder:
    """Posts the Events of one speculator."""

    def __init__(self, api: KubernetesApi) -> None:
        self._api = api

    async def post(self, note: EventNote, owner: Owner) -> bool:
        """Log ``note`` and post it as an Event. A refused Event is logged and otherwise ignored.

        Returns False when the Event is refused because the namespace is being deleted.
        """
        log.info("%s: %s: %s", owner.full_name, note.reason, note.message)
        event = _event(note, owner, datetime.now(UTC))
        try:
            await call_api(self._api.create, event)
        except Conflict:
            return True
        except KubernetesError as error:
            log.warning("%s: the Event %s was not posted: %s", owner.full_name, note.reason, error)
            return not isinstance(error, NamespaceEnds)
        return True


def _event(note: EventNote, owner: Owner, now: datetime) -> Object:
    """The Event. Its name is a digest of its content and of the present period, so a repetition is a Conflict.

    The generation belongs to the content, so after an edit of the spec each Event is posted anew.
    """
    timestamp = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    type_ = "Warning" if note.warning else "Normal"
    content = note.message if note.period_per_reason is None else type_
    period = now.timestamp() // (note.period_per_reason or MESSAGE_PERIOD).total_seconds()
    text = f"{owner.uid}/{owner.generation}/{note.reason}/{content}/{period}"
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{owner.name}.{hashlib.sha256(text.encode()).hexdigest()[:16]}",
            "namespace": owner.namespace,
        },
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": owner.name,
            "namespace": owner.namespace,
            "uid": owner.uid,
        },
        "type": type_,
        "reason": note.reason,
        "message": note.message[:MAX_MESSAGE_CHARACTERS],
        "source": {"component": OPERATOR_NAME},
        "firstTimestamp": timestamp,
        "lastTimestamp": timestamp,
        "count": 1,
    }
