"""Deletes what a speculator with ``store.deletionPolicy: Delete`` stored, before the speculator itself goes.

Invariants:

- Only our finalizer holds the resource. It is removed when a listing of the root is empty, when the root belongs to
  another speculator, or as soon as the policy is Retain.
- An empty listing ends the deletion only if the root was seen before. ``status.active`` says that the root was in use.
  It is removed when only the record that closed the root is left, and that record is deleted afterwards. Until then, a
  store without records of the root is reported as a wrong store, and a person decides.
- Each step is short and idempotent, so a restarted operator goes on.
- The condition Ready says that the speculator is being deleted. It tells a failure with the way out at once, and an
  Event does so after ``QUIET_SECONDS``.
- A namespace that is being deleted does not hang for ever while the operator keeps its rights there. If its Secret with
  the store's keys is gone or may not be read, nobody can change that, so the objects are kept. With ``watchNamespaces``
  the rights are Roles of the namespace and go with it. Only a person can then remove the finalizer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from datetime import UTC, datetime

from aurora_api.v1alpha1.spec import SpeculatorSpec
from aurora_api.v1alpha1.status import SpeculatorStatus
from aurora_api.v1alpha1.store import DeletionPolicy
from aurora_operator.act.custom_resource import set_finalizer, write_status
from aurora_operator.act.event_recorder import EventRecorder
from aurora_operator.children.metadata import is_own_pod
from aurora_operator.children.owner import Owner
from aurora_operator.errors import (
    UNAVAILABLE_STATUSES,
    Conflict,
    InvalidSpec,
    KubernetesError,
    NotFound,
)
from aurora_operator.kubernetes_api import DEPLOYMENT, JOB, POD, SPECULATOR, KubernetesApi, Object
from aurora_operator.observe.kubernetes_views import has_ended
from aurora_operator.observe.observed import StoreView
from aurora_operator.observe.observer import Observer
from aurora_operator.observe.stored_resource import owner_of, parse_usable, status_of
from aurora_operator.plan.conditions.condition_builder import deleting_status
from aurora_operator.plan.data_deletion import (
    IN_PROGRESS,
    QUIET_SECONDS,
    DeletionFacts,
    DeletionStep,
    blocked_note,
    end_note,
    failure_note,
    failure_text,
    finalizer_text,
    next_step,
    no_records_text,
    workload_text,
)
from aurora_protocol.errors import InvalidRecord
from aurora_store import StoreConfig
from aurora_store.errors import StoreError
from aurora_store.keys import owner_id
from aurora_store.root.deletable_objects import DeletableObjects
from aurora_store.root.root_deletion import DeletionProgress, RootDeletion
from aurora_store.s3_calls.call_limits import total_deadline

log = logging.getLogger(__name__)

STEP_SECONDS = 10.0
STEP_DEADLINE_SECONDS = 20.0
STEP_TIMEOUT_SECONDS = 22.0
"""A step ends at its deadline. A little later it is abandoned, for example while a host name is looked up."""
BUSY_DELAY_SECONDS = 2.0
RETRY_DELAY_SECONDS = 30.0
MAX_REFUSED_NOTES = 10
"""After so many refusals, the API server will not take the status. The deletion does not wait for it any longer."""


class DataDeletion:
    """Deletes the stored objects of one speculator."""

    def __init__(self, api: KubernetesApi, observer: Observer, events: EventRecorder) -> None:
        self._api, self._observer, self._events = api, observer, events
        self._store = observer.store
        self._root: tuple[StoreConfig, RootDeletion] | None = None
        self._config: StoreConfig | None = None
        """How the store was reached last. The Secret may be deleted together with the speculator."""
        self._failure = ""
        """Why the last attempt failed, for the condition Ready."""
        self._emptied: StoreConfig | None = None
        """The store in which only the root's last record is left, although the status is refused that says so."""
        self._refused_notes = 0
        """How often the API server has refused that status."""

    async def advance(self, stored: Object) -> float:
        """Take the next step for a resource that is being deleted. Returns the seconds to wait before the next call.

        A workload or finalizer that the API server does not remove is reported, and the call tried again later. Raises
        :class:`NotFound` when our finalizer does not hold the resource, :class:`Conflict` when an object changed
        meanwhile, :class:`KubernetesError` when what is left or the Secret cannot be read.
        """
        owner, policy = owner_of(stored), _policy(stored)
        if policy is DeletionPolicy.DELETE and await self._report(stored):
            return 0.0  # the status was written, so look at the resource again
        left = [*(await self._observer.children(owner)).values()]
        facts = _facts(owner, stored, policy, left)
        match next_step(facts):
            case DeletionStep.RELEASE:
                return await self._release(stored, facts.seconds)
            case DeletionStep.STOP_WORKLOADS:
                return await self._stop(stored, _workloads(owner, left), facts.seconds)
            case DeletionStep.WAIT_FOR_PODS:
                self._failure = ""  # a person may have deleted the workload that could not be deleted
                log.info("%s: %d pods have not ended yet", owner.full_name, facts.running_pods)
            case DeletionStep.DELETE_OBJECTS:
                return await self._delete_objects(owner, stored, facts.seconds)
        return BUSY_DELAY_SECONDS

    async def _report(self, stored: Object) -> bool:
        """Let the condition Ready say how the deletion goes. Returns whether the status was written.

        A refusal only delays the status. Raises :class:`Conflict` when the resource changed since it was read.
        """
        owner, before = owner_of(stored), status_of(stored)
        reported = deleting_status(before, owner.generation, self._failure or IN_PROGRESS, datetime.now(UTC))
        return reported != before and await self._write_status(owner, reported)

    async def _note_emptied(self, stored: Object, config: StoreConfig) -> float:
        """Note in the status that only the record that closed the root is left.

        The last record stays until the status says so. An operator that comes after this one would otherwise find an
        empty root of an active version, which proves nothing. A refusal that lasts is the exception: this operator then
        goes on from memory.
        """
        try:
            await self._api.patch(
                {"kind": SPECULATOR.kind, **stored}, {"status": {"active": None}}, subresource="status"
            )
        except Conflict:
            raise
        except KubernetesError as error:
            log.warning("%s: the last record waits for the status: %s", owner_of(stored).full_name, error)
            self._refused_notes += error.status not in UNAVAILABLE_STATUSES
            if self._refused_notes < MAX_REFUSED_NOTES:
                return RETRY_DELAY_SECONDS
            self._emptied = config
        return 0.0

    async def _write_status(self, owner: Owner, reported: SpeculatorStatus) -> bool:
        """Returns whether the status was written. Raises :class:`Conflict` when the resource changed meanwhile."""
        try:
            await write_status(self._api, owner, reported)
        except Conflict:
            raise
        except KubernetesError as error:
            log.warning("%s: the status of the deletion was not written: %s", owner.full_name, error)
            return False
        return True

    async def _stop(self, stored: Object, workloads: Sequence[Object], seconds: float) -> float:
        owner = owner_of(stored)
        for obj in workloads:
            try:
                await self._api.delete(obj)
            except (Conflict, NotFound):
                raise
            except KubernetesError as error:
                text = workload_text(
                    f"{obj['kind']} {obj['metadata']['name']}", str(error), owner.namespace, owner.name
                )
                return await self._blocked(stored, text, seconds)
        self._failure = ""
        log.info("%s: deleted %d workloads, so that nothing writes to the store", owner.full_name, len(workloads))
        return BUSY_DELAY_SECONDS

    async def _release(self, stored: Object, seconds: float) -> float:
        owner = owner_of(stored)
        try:
            await set_finalizer(self._api, owner, wanted=False)
        except (Conflict, NotFound):
            raise
        except KubernetesError as error:
            return await self._blocked(stored, finalizer_text(str(error), owner.namespace, owner.name), seconds)
        log.info("%s: removed the finalizer, so the API server deletes the speculator", owner.full_name)
        return BUSY_DELAY_SECONDS

    async def _blocked(self, stored: Object, text: str, seconds: float) -> float:
        """Report that the API server does not delete a workload, or does not remove the finalizer."""
        owner = owner_of(stored)
        log.warning("%s: %s", owner.full_name, text)
        self._failure = text
        if seconds >= QUIET_SECONDS:
            self._events.post(blocked_note(text), owner)
        await self._report(stored)
        return RETRY_DELAY_SECONDS

    async def _delete_objects(self, owner: Owner, stored: Object, seconds: float) -> float:
        try:
            spec = parse_usable(stored)[1]
        except InvalidSpec as error:
            return await self._failed(stored, "the place that spec.store names", str(error), seconds)
        config = await self._find_config(owner, spec)
        if isinstance(config, StoreView):
            gone = config.reason in ("SecretMissing", "SecretForbidden")
            return await self._failed(stored, f"s3://{spec.store.bucket}", config.error, seconds, keys_are_gone=gone)
        place = f"s3://{config.bucket}/{config.root}"
        try:
            active = status_of(stored).active if config != self._emptied else None
            progress = await self._one_step(config, owner, expects_records=active is not None)
        except (StoreError, InvalidRecord) as error:
            return await self._failed(stored, place, str(error), seconds)
        if progress is None:
            return await self._failed(stored, place, "the store gives no answer", seconds)
        if progress.no_records and active is not None:
            return await self._failed(stored, place, no_records_text(active.version, config.endpoint), seconds)
        self._failure = ""
        if progress.only_record_left:
            return await self._note_emptied(stored, config)
        if progress.done or progress.kept:
            self._events.post(end_note(progress, place), owner)
            return await self._release(stored, seconds)
        log.info("%s: deleted %d objects so far", owner.full_name, progress.objects)
        return BUSY_DELAY_SECONDS

    async def _find_config(self, owner: Owner, spec: SpeculatorSpec) -> StoreConfig | StoreView:
        """How to reach the store: as the Secret says, or as it said when it was there."""
        config = await self._store.config(owner, spec)
        if not isinstance(config, StoreView):
            self._config = config
            return config
        reader = self._store.reader
        return (reader.config if reader is not None else self._config) or config

    async def _one_step(self, config: StoreConfig, owner: Owner, *, expects_records: bool) -> DeletionProgress | None:
        """One step in a thread. None when the step was abandoned; the next call begins anew."""
        try:
            async with asyncio.timeout(STEP_TIMEOUT_SECONDS):
                if self._root is None or self._root[0] != config:
                    self._root = (config, await asyncio.to_thread(_open_root, config, owner_id(owner.uid)))
                return await asyncio.to_thread(_bounded_step, self._root[1], expects_records=expects_records)
        except TimeoutError:
            self._root = None  # the abandoned step still uses it
            return None

    async def _failed(
        self, stored: Object, place: str, error: str, seconds: float, *, keys_are_gone: bool = False
    ) -> float:
        """Report the failure. Let the speculator go if its store's keys are gone for ever: its namespace ends, too."""
        owner = owner_of(stored)
        log.warning("%s: the objects below %s are not deleted yet: %s", owner.full_name, place, error)
        self._failure = failure_text(error, place, owner.namespace, owner.name)
        if seconds >= QUIET_SECONDS:
            self._events.post(failure_note(self._failure), owner)
            if keys_are_gone:
                log.warning(
                    "%s: the objects below %s are kept: the namespace is being deleted, and the Secret with the store's"
                    " keys is gone. Delete the objects by hand", owner.full_name, place
                )  # fmt: skip
                return await self._release(stored, seconds)
        await self._report(stored)
        return RETRY_DELAY_SECONDS


def _bounded_step(root: RootDeletion, *, expects_records: bool) -> DeletionProgress:
    """Blocks."""
    with total_deadline(STEP_DEADLINE_SECONDS):
        return root.step(STEP_SECONDS, expects_records=expects_records)


def _facts(owner: Owner, stored: Object, policy: DeletionPolicy, left: Sequence[Object]) -> DeletionFacts:
    return DeletionFacts(
        policy=policy,
        workloads_exist=bool(_workloads(owner, left)),
        running_pods=sum(_is_running_pod(owner, obj) for obj in left),
        seconds=_seconds_since(stored["metadata"]["deletionTimestamp"]),
    )


def _is_running_pod(owner: Owner, obj: Object) -> bool:
    return obj["kind"] == POD.kind and is_own_pod(owner, obj, {}) and not has_ended(obj)


def _workloads(owner: Owner, objects: Sequence[Object]) -> list[Object]:
    """Our Deployments and Jobs that are not being deleted yet."""
    ours = [obj for obj in objects if obj["kind"] in (DEPLOYMENT.kind, JOB.kind) and owner.owns(obj)]
    return [obj for obj in ours if "deletionTimestamp" not in obj["metadata"]]


def _open_root(config: StoreConfig, owner: str) -> RootDeletion:
    return RootDeletion(DeletableObjects(config, attempts=2, call_seconds=STEP_SECONDS), owner)


def _policy(stored: Object) -> DeletionPolicy:
    """The policy, even of a spec that does not parse otherwise. Nothing is deleted unless the spec asks for it."""
    value = (stored["spec"].get("store") or {}).get("deletionPolicy")
    return DeletionPolicy.DELETE if value == DeletionPolicy.DELETE else DeletionPolicy.RETAIN


def _seconds_since(timestamp: str) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(timestamp)).total_seconds()
