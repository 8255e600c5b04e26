"""Decides the next step of deleting a speculator's stored objects (``store.deletionPolicy: Delete``). Pure.

Why the pods end first: an inference pod uploads its last traces when it ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import Enum

from aurora_api.v1alpha1.store import DeletionPolicy
from aurora_operator.children.metadata import FINALIZER
from aurora_operator.plan.actions import EventNote
from aurora_store.root.root_deletion import DeletionProgress

MAX_POD_WAIT_SECONDS = 600.0
"""A pod on a lost node stays in the API server until the node is removed. Its deletion is not waited for any longer."""
QUIET_SECONDS = 300.0
"""Seconds for which a deletion may fail before an Event reports it."""
MAX_ERROR_CHARACTERS = 400
"""Length of an error's text in a condition or an Event. The way out behind it must fit into an Event, too."""
IN_PROGRESS = "The speculator is being deleted: first its pods, then its stored objects (store.deletionPolicy: Delete)"
"""The message of the condition Ready while the deletion gets on."""


class DeletionStep(Enum):
    """What to do next for a speculator that is being deleted."""

    RELEASE = "remove the finalizer"
    STOP_WORKLOADS = "delete the Deployments and Jobs"
    WAIT_FOR_PODS = "wait until the pods have ended"
    DELETE_OBJECTS = "delete the objects in the store"


@dataclass(frozen=True)
class DeletionFacts:
    """What was observed of a speculator that is being deleted."""

    policy: DeletionPolicy
    workloads_exist: bool
    running_pods: int
    seconds: float
    """Since the deletion began."""


def next_step(facts: DeletionFacts) -> DeletionStep:
    """The next step. Repeated until the finalizer is removed."""
    if facts.policy is DeletionPolicy.RETAIN:
        return DeletionStep.RELEASE
    if facts.workloads_exist:
        return DeletionStep.STOP_WORKLOADS
    if facts.running_pods and facts.seconds < MAX_POD_WAIT_SECONDS:
        return DeletionStep.WAIT_FOR_PODS
    return DeletionStep.DELETE_OBJECTS


def end_note(progress: DeletionProgress, place: str) -> EventNote:
    """The Event for a deletion that ended. ``place`` names bucket and root."""
    if progress.kept:
        return EventNote("DataKept", f"Deleted no object below {place}, because {progress.kept}")
    size = f"{progress.size_bytes / (1 << 20):.1f} MiB"
    versions = f" and {progress.versions} stored versions and delete markers" if progress.versions else ""
    text = f"Deleted {progress.objects} objects{versions} ({size}) below {place}, and a listing finds no object"
    if not progress.remains:
        return EventNote("DataDeleted", text)
    return EventNote(
        "DataMayRemain",
        f"{text}. But users' data may remain there: {progress.remains[:500]}. Delete what remains by hand, or let a"
        " lifecycle rule of the bucket do it (docs/how-to/erasing-data.md)",
        warning=True,
    )


def no_records_text(version: int, endpoint: str | None) -> str:
    """Why an empty root of a speculator that served ``version`` proves nothing."""
    return (
        f"version {version} was active, but the store {endpoint or 'AWS S3'} has no record of it. If store.endpoint was"
        " changed, set it to the store that holds the objects. If the objects are gone, for example because an operator"
        " deleted them and was updated just then, let the speculator go"
    )


def failure_text(error: str, place: str, namespace: str, name: str) -> str:
    """Why a deletion does not get on, and the way out."""
    return (
        f"The objects below {place} are not deleted yet, and the operator tries again:"
        f" {error[:MAX_ERROR_CHARACTERS]}. To keep them and let the speculator go: {_retain_command(namespace, name)}"
    )


def failure_note(text: str) -> EventNote:
    """The Event with :func:`failure_text`. Made after each attempt, posted once an hour."""
    return EventNote("DataNotDeleted", text, warning=True, period_per_reason=timedelta(hours=1))


def workload_text(workload: str, answer: str, namespace: str, name: str) -> str:
    """Why a ``workload``, named with its kind, is not deleted, and the way out. ``answer`` is the API server's."""
    return (
        f"The {workload} in namespace {namespace} is not deleted yet, and the operator tries again:"
        f" {answer[:MAX_ERROR_CHARACTERS]}. Let the operator delete it, or delete it by hand. To keep the stored"
        f" objects and let the speculator go: {_retain_command(namespace, name)}"
    )


def finalizer_text(answer: str, namespace: str, name: str) -> str:
    """Why our finalizer is not removed, and the way out. ``answer`` is the API server's."""
    return (
        f"The finalizer {FINALIZER} of AuroraSpeculator {name} is not removed yet, and the operator tries again:"
        f" {answer[:MAX_ERROR_CHARACTERS]}. Let the operator remove it, or remove it from metadata.finalizers by hand:"
        f" kubectl edit auroraspeculator {name} -n {namespace}"
    )


def blocked_note(text: str) -> EventNote:
    """The Event with :func:`workload_text` or :func:`finalizer_text`. Made after each attempt, posted once an hour."""
    return EventNote("DeletionBlocked", text, warning=True, period_per_reason=timedelta(hours=1))


def _retain_command(namespace: str, name: str) -> str:
    patch = '{"spec":{"store":{"deletionPolicy":"Retain"}}}'
    return f"kubectl patch auroraspeculator {name} -n {namespace} --type merge -p '{patch}'"
