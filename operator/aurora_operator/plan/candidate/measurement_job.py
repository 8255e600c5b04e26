"""Tells how the Job of a measurement fares: it failed, its pod does not start, or it is suspended. Pure.

A Job is suspended (``spec.suspend``) by a queue such as Kueue, or by a person. Kubernetes then deletes the Job's pod
and stops the clock of the Job's deadline, which begins anew when the Job is resumed.

Invariant: a suspended Job has not failed, however long it waits. The one exception is a Job that measures on a replica:
the replica returns to its Service when its lease is over, and the Job could not begin without it.
"""

from __future__ import annotations

from typing import Final

from aurora_api.v1alpha1.status import CandidateStatus
from aurora_operator.observe.observed import JobView, RefusedJob

POD_DOES_NOT_START: Final = "; its pod does not start: "
JOB_IS_SUSPENDED: Final = "; its Job is suspended"
_REPLICA_IS_BACK: Final = (
    "its Job was suspended for longer than a replica may be away from the Service. Keep queues and people from"
    " suspending the Job, or set validation.measureOn to Job"
)


def failure(
    candidate: CandidateStatus, job: JobView | None, refused: RefusedJob | None, *, replica_is_back: bool = False
) -> str:
    """Why the present attempt ended without evidence; empty while its Job may still write evidence.

    Args:
        job: of the present attempt, if it exists.
        refused: the Job that the API server refused last.
        replica_is_back: candidates are measured on a replica, and none is withdrawn.
    """
    if job is None:
        its_own = refused is not None and refused.name == candidate.job
        return f"the API server refused its Job: {refused.message}" if refused is not None and its_own else ""
    if job.suspended:
        return _REPLICA_IS_BACK if replica_is_back else ""
    return (job.message or "the Job ended without evidence; see its log") if job.finished else ""


def with_waiting_note(candidate: CandidateStatus, job: JobView | None) -> CandidateStatus:
    """``candidate`` with a message that says what its Job waits for, if the Job waits for anything."""
    if job is None:
        return candidate
    before = candidate.message.split(POD_DOES_NOT_START)[0].split(JOB_IS_SUSPENDED)[0]
    message = before + _waiting_note(job)
    return candidate if message == candidate.message else candidate.model_copy(update={"message": message})


def _waiting_note(job: JobView) -> str:
    if job.suspended:
        resumer = f"until Kueue admits it to the queue {job.queue}" if job.queue else "until its spec.suspend is false"
        return f"{JOB_IS_SUSPENDED} {resumer}. kubectl aurora abort ends the wait"
    return f"{POD_DOES_NOT_START}{job.waiting}" if job.waiting else ""
