"""A speculator and what stands around it, as plain facts. Pure.

Invariant: objects come from a cluster of any version, so a missing or odd field gives a fact less, never an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from aurora_cli.speculator import Speculator

INFERENCE, TRAINER, VALIDATOR = "inference", "trainer", "validator"
COMPONENT_LABEL = "app.kubernetes.io/component"
MAX_LEASE_SECONDS: Final = 86400
_BENIGN_WAITS: Final = frozenset({"ContainerCreating", "PodInitializing"})


@dataclass(frozen=True)
class ContainerTrouble:
    """Why a container of a pod does not run, or that it ended again and again."""

    container: str
    reason: str
    """Kubernetes' reason: ``ImagePullBackOff``, ``CrashLoopBackOff``, ``OOMKilled``."""
    message: str = ""
    restarts: int = 0
    running_since: datetime | None = None
    """When the container started again. None: it does not run."""


@dataclass(frozen=True)
class PodFacts:
    """One pod of the speculator."""

    name: str
    component: str
    ready: bool
    unschedulable: str = ""
    """The scheduler's message, if it finds no node. A pod that a queue holds back has not asked for one."""
    troubles: Sequence[ContainerTrouble] = ()
    terminating: bool = False

    @property
    def cannot_run(self) -> bool:
        """Whether the pod has no node, or one of its containers does not run. So it cannot be ready."""
        return bool(self.unschedulable) or any(trouble.running_since is None for trouble in self.troubles)


@dataclass(frozen=True)
class JobFacts:
    """A measurement's Job."""

    name: str
    failed: bool
    message: str = ""
    """Kubernetes' reason, such as that the Job's deadline passed."""


@dataclass(frozen=True)
class EventFacts:
    """An Event about the speculator."""

    reason: str
    message: str
    warning: bool
    last: datetime | None


@dataclass(frozen=True)
class LeaseFacts:
    """The Lease that the acting replica of the operator renews."""

    name: str
    """Namespace and name."""
    renewed: datetime | None = None
    """None: the Lease does not exist, or nobody has renewed it."""
    duration_seconds: int = 0


@dataclass(frozen=True)
class Snapshot:
    """All that the rules know."""

    speculator: Speculator
    now: datetime
    pods: Sequence[PodFacts] = ()
    jobs: Sequence[JobFacts] = ()
    events: Sequence[EventFacts] = ()
    unseen: Sequence[str] = ()
    """Kinds that the user may not read."""
    lease: LeaseFacts | None = None
    """None: the status names no Lease, or the user may not read it."""

    def pods_of(self, component: str) -> Iterator[PodFacts]:
        """The pods of one component that are not being deleted."""
        return (pod for pod in self.pods if pod.component == component and not pod.terminating)

    def last_event(self, reason: str) -> EventFacts | None:
        """The newest Event of this reason."""
        found = [event for event in self.events if event.reason == reason]
        return max(found, key=lambda event: event.last or datetime.min.replace(tzinfo=UTC), default=None)


def pods_of(items: Iterable[Mapping[str, Any]]) -> Iterator[PodFacts]:
    """The facts of pods as the API server lists them."""
    for item in items:
        metadata, status = _mapping(item, "metadata"), _mapping(item, "status")
        conditions = {str(one.get("type")): one for one in _mappings(status, "conditions")}
        scheduled = conditions.get("PodScheduled", {})
        waits = scheduled.get("status") == "False" and scheduled.get("reason") != "SchedulingGated"
        yield PodFacts(
            name=str(metadata.get("name", "")),
            component=str(_mapping(metadata, "labels").get(COMPONENT_LABEL, "")),
            ready=conditions.get("Ready", {}).get("status") == "True",
            unschedulable=str(scheduled.get("message") or "the scheduler finds no node") if waits else "",
            troubles=tuple(_troubles(status)),
            terminating="deletionTimestamp" in metadata,
        )


def _troubles(status: Mapping[str, Any]) -> Iterator[ContainerTrouble]:
    if status.get("reason") == "Evicted":
        yield ContainerTrouble("", "Evicted", str(status.get("message") or ""))
    for container in (*_mappings(status, "initContainerStatuses"), *_mappings(status, "containerStatuses")):
        state = _mapping(container, "state")
        waiting, running = _mapping(state, "waiting"), _mapping(state, "running")
        if _mapping(state, "terminated").get("exitCode") == 0:
            continue  # an init container that succeeded; an earlier attempt may have been killed
        ended = _mapping(_mapping(container, "lastState"), "terminated")
        name, restarts = str(container.get("name", "")), _count(container.get("restartCount"))
        killed = ended.get("reason") == "OOMKilled"
        if waiting and str(waiting.get("reason")) not in _BENIGN_WAITS:
            reason = "OOMKilled" if killed else str(waiting.get("reason") or "")
            message = str(ended.get("message") or "").strip() or str(waiting.get("message") or "")
            yield ContainerTrouble(name, reason, message, restarts)
        elif killed:
            yield ContainerTrouble(name, "OOMKilled", "", restarts, _time(running.get("startedAt")))


def jobs_of(items: Iterable[Mapping[str, Any]]) -> Iterator[JobFacts]:
    """The facts of Jobs as the API server lists them."""
    for item in items:
        metadata = _mapping(item, "metadata")
        failed = next(
            (
                one
                for one in _mappings(_mapping(item, "status"), "conditions")
                if one.get("type") == "Failed" and one.get("status") == "True"
            ),
            None,
        )
        yield JobFacts(
            name=str(metadata.get("name", "")),
            failed=failed is not None,
            message=str((failed or {}).get("message") or ""),
        )


def events_of(items: Iterable[Mapping[str, Any]]) -> Iterator[EventFacts]:
    """The facts of Events as the API server lists them."""
    for item in items:
        yield EventFacts(
            reason=str(item.get("reason") or ""),
            message=str(item.get("message") or ""),
            warning=item.get("type") == "Warning",
            last=_time(item.get("lastTimestamp") or item.get("eventTime")),
        )


def lease_of(name: str, item: Mapping[str, Any]) -> LeaseFacts:
    """The facts of a Lease as the API server returns it. ``item`` is empty where there is none."""
    spec = _mapping(item, "spec")
    duration_seconds = min(_count(spec.get("leaseDurationSeconds")), MAX_LEASE_SECONDS)
    return LeaseFacts(name, _time(spec.get("renewTime")), max(0, duration_seconds))


def _mapping(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = value.get(key)
    return found if isinstance(found, Mapping) else {}


def _mappings(value: Mapping[str, Any], key: str) -> Iterator[Mapping[str, Any]]:
    found = value.get(key)
    if isinstance(found, Sequence) and not isinstance(found, str):
        yield from (item for item in found if isinstance(item, Mapping))


def _count(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _time(value: Any) -> datetime | None:
    """A point in time with its zone; None for a text that is none."""
    if not isinstance(value, str):
        return None
    try:
        found = datetime.fromisoformat(value)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
