"""Deletes what a speculator with ``store.deletionPolicy: Delete`` stored, before the speculator itself goes.

First the Deployments are scaled to zero and the Jobs are deleted, and their pods end: an inference pod uploads its last
traces when it ends. Kubernetes deletes the Deployments with the speculator, so the operator needs no right to. Then the
root is listed and deleted until it is empty (:mod:`aurora_store.root_deletion`), and our finalizer is removed.

Invariants:

- Only our finalizer holds the resource. It is removed when the root is empty, when the root belongs to another
  speculator, or as soon as the policy is Retain.
- Each step is short and idempotent, so a restarted operator goes on.
- The condition Ready says that the speculator is being deleted, and tells a failure with the way out.
- If the Secret with the store's keys is gone or may not be read, nobody can delete the objects, so they are kept, and
  the speculator does not hang for ever.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Final

from aurora_api.v1alpha1.store import DeletionPolicy
from aurora_operator.act.custom_resource import EventRecorder, set_finalizer, write_status
from aurora_operator.children.metadata import Owner, is_own_pod
from aurora_operator.errors import Conflict, InvalidSpec, KubernetesError, NotFound
from aurora_operator.kubernetes_api import DEPLOYMENT, JOB, POD, KubernetesApi, Object
from aurora_operator.observe.kubernetes_views import has_ended
from aurora_operator.observe.observed import StoreView
from aurora_operator.observe.observer import Observer
from aurora_operator.observe.stored_resource import owner_of, parse, status_of
from aurora_operator.plan.actions import EventNote
from aurora_operator.plan.conditions import deleting_status
from aurora_store import StoreConfig
from aurora_store.errors import StoreError
from aurora_store.keys import owner_id
from aurora_store.root_deletion import DeletionProgress, RootDeletion

log = logging.getLogger(__name__)

STEP_SECONDS: Final = 10.0
STEP_DEADLINE_SECONDS: Final = 60.0
BUSY_DELAY_SECONDS: Final = 2.0
RETRY_DELAY_SECONDS: Final = 30.0
MAX_POD_WAIT_SECONDS: Final = 600.0
"""A pod on a lost node stays in the API server until the node is removed. Its deletion is not waited for any longer."""
KEYS_GONE_SECONDS: Final = 300.0
"""Seconds after which a speculator whose store's keys are gone is let go, and its objects are kept."""
MAX_ERROR_CHARACTERS: Final = 400
"""Length of an error's text in the condition, which has the way out behind it."""
_NO_PODS: Final = {"spec": {"replicas": 0}}
IN_PROGRESS: Final = (
    "The speculator is being deleted: first its pods, then its stored objects (store.deletionPolicy: Delete)"
)
"""The message of the condition Ready while the deletion gets on."""


class DataDeletion:
    """Deletes the stored objects of one speculator."""

    def __init__(self, api: KubernetesApi, observer: Observer, events: EventRecorder) -> None:
        self._api, self._observer, self._events = api, observer, events
        self._root: RootDeletion | None = None
        """The deletion under way. None after a step that failed: it may still run in its thread."""
        self._config: StoreConfig | None = None
        """How the store was reached last. The Secret may be deleted together with the speculator."""

    async def advance(self, stored: Object) -> float:
        """Take the next step for a resource that is being deleted. Returns the seconds to wait before the next call.

        What does not get on is reported and tried again. Raises :class:`NotFound` when the resource is gone,
        :class:`Conflict` when an object changed meanwhile.
        """
        owner = owner_of(stored)
        try:
            if not deletes(stored) or await self._delete(owner, stored):
                await set_finalizer(self._api, stored, wanted=False)
                log.info("%s: removed the finalizer, so the API server deletes the speculator", owner.full_name)
                return BUSY_DELAY_SECONDS
        except (Conflict, NotFound):
            raise
        except (KubernetesError, StoreError, InvalidSpec) as error:
            text = failure_text(str(error), owner)
            log.warning("%s: %s", owner.full_name, text)
            await self._report(owner, stored, text)
            return RETRY_DELAY_SECONDS
        await self._report(owner, stored, IN_PROGRESS)
        return BUSY_DELAY_SECONDS

    async def _delete(self, owner: Owner, stored: Object) -> bool:
        """The next step of the deletion. Returns whether nothing is left to do but to remove the finalizer."""
        seconds = (datetime.now(UTC) - datetime.fromisoformat(stored["metadata"]["deletionTimestamp"])).total_seconds()
        left = [*(await self._observer.children(owner)).values()]
        workloads = [obj for obj in left if _is_live_workload(owner, obj)]
        for obj in workloads:
            await (self._api.delete(obj) if obj["kind"] == JOB.kind else self._api.patch(obj, _NO_PODS))
        if workloads:
            log.info("%s: stopped %d workloads, so that nothing writes to the store", owner.full_name, len(workloads))
            return False
        if any(_is_running_pod(owner, obj) for obj in left) and seconds < MAX_POD_WAIT_SECONDS:
            return False
        config = await self._find_config(owner, stored)
        if isinstance(config, StoreView):
            if config.reason in ("SecretMissing", "SecretForbidden") and seconds >= KEYS_GONE_SECONDS:
                log.warning("%s: the objects are kept, delete them by hand: %s", owner.full_name, config.error)
                return True
            raise StoreError(config.error)
        progress = await self._one_step(config, owner_id(owner.uid))
        if progress.done:
            self._events.post(end_note(progress, f"s3://{config.bucket}/{config.root}"), owner)
        return progress.done

    async def _find_config(self, owner: Owner, stored: Object) -> StoreConfig | StoreView:
        """How to reach the store: as the Secret says, or as it said when it was there."""
        config, reader = await self._observer.store.config(owner, parse(stored)[1]), self._observer.store.reader
        if isinstance(config, StoreConfig):
            self._config = config
        elif reader is not None and self._config is None:
            self._config = reader.config  # as in the last reconcile before the deletion
        return self._config or config

    async def _one_step(self, config: StoreConfig, speculator: str) -> DeletionProgress:
        """Raises :class:`StoreError`. The next step then begins anew."""
        (root, self._root), calls = (self._root, None), self._observer.store.calls
        if root is None or root.config != config:
            root = await calls.run(lambda: RootDeletion(config, speculator, attempts=2, timeout_seconds=STEP_SECONDS))
        progress = await calls.run(lambda: root.step(STEP_SECONDS), STEP_DEADLINE_SECONDS)
        self._root = root
        return progress

    async def _report(self, owner: Owner, stored: Object, message: str) -> None:
        """Let the condition Ready say how the deletion goes."""
        before = status_of(stored)
        reported = deleting_status(before, owner.generation, message, datetime.now(UTC))
        if reported != before:
            await write_status(self._api, owner, reported)


def end_note(progress: DeletionProgress, place: str) -> EventNote:
    """The Event for a deletion that ended. ``place`` names bucket and root."""
    if progress.kept:
        return EventNote("DataKept", f"Deleted no object below {place}, because {progress.kept}")
    text = f"Deleted {progress.deleted} objects and older versions below {place}, and a listing finds no object"
    if not progress.remains:
        return EventNote("DataDeleted", text)
    return EventNote(
        "DataMayRemain",
        f"{text}. But users' data may remain there: {progress.remains[:500]}. Delete what remains by hand, or let a"
        " lifecycle rule of the bucket do it (docs/how-to/erasing-data.md)",
        warning=True,
    )


def failure_text(error: str, owner: Owner) -> str:
    """Why a deletion does not get on, and the way out."""
    patch = '{"spec":{"store":{"deletionPolicy":"Retain"}}}'
    return (
        f"The stored objects are not deleted yet, and the operator tries again: {error[:MAX_ERROR_CHARACTERS]}. To keep"
        f" them and let the speculator go: kubectl patch auroraspeculator {owner.name} -n {owner.namespace} --type"
        f" merge -p '{patch}'"
    )


def _is_running_pod(owner: Owner, obj: Object) -> bool:
    return obj["kind"] == POD.kind and is_own_pod(owner, obj, {}) and not has_ended(obj)


def _is_live_workload(owner: Owner, obj: Object) -> bool:
    """Whether ``obj`` is our Deployment that wants pods, or our Job, and not being deleted yet."""
    if not owner.owns(obj) or "deletionTimestamp" in obj["metadata"]:
        return False
    return obj["kind"] == JOB.kind or (obj["kind"] == DEPLOYMENT.kind and bool(obj["spec"]["replicas"]))


def deletes(stored: Object) -> bool:
    """The policy, even of a spec that does not parse otherwise. Nothing is deleted unless the spec asks for it."""
    return (stored["spec"].get("store") or {}).get("deletionPolicy") == DeletionPolicy.DELETE
