"""Does the trainer learn, and do its candidates pass the gate? Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Final

from aurora_api.v1alpha1.conditions import ConditionStatus, ConditionType
from aurora_api.v1alpha1.status import CandidatePhase
from aurora_api.v1alpha1.validation import ValidationSpec
from aurora_cli.doctor.facts import TRAINER, VALIDATOR, Snapshot
from aurora_cli.doctor.finding import Finding, Remedy, Severity, abnormal, condition_text
from aurora_cli.doctor.store_rules import ALL_SPECULATORS, DELETE, RESTORE, START_OVER, USAGE
from aurora_cli.errors import Unreadable

TRAINER_LOG: Final = "kubectl -n {ns} logs deployment/{name}-trainer --tail=50"
OFTEN: Final = 3
"""So many refused candidates in a row are worth a word."""
_TRAINER: Final[Mapping[str, Remedy]] = {
    "PodNotReady": Remedy(
        "the trainer's pod is not ready",
        "Its log, or its events, say why.",
        (
            TRAINER_LOG,
            "kubectl -n {ns} describe pods -l app.kubernetes.io/instance={name},app.kubernetes.io/component=trainer",
        ),
    ),
    "Queued": Remedy(
        "the trainer's pod waits in a queue",
        "The queue opens the pod's scheduling gate once its quota has room, by priority. With Kueue, its Workloads say"
        " what is missing. To leave the queue or take another one, change the label in training.template, then delete"
        " the Deployment: the operator makes it again.",
        (
            "kubectl -n {ns} get workloads.kueue.x-k8s.io",
            "kubectl -n {ns} delete deployment {name}-trainer   # only after the label is changed",
        ),
        Severity.WARNING,
    ),
    "Starting": Remedy(
        "the trainer cannot begin",
        "The message says what it waits for. A gated model needs HF_TOKEN in training.template. A published head must"
        " fit the target.",
        (TRAINER_LOG,),
    ),
    "Silent": Remedy(
        "the trainer's pod is ready, and the trainer has reported nothing for minutes",
        "Read its log. If the trainer hangs, restart it.",
        (TRAINER_LOG, "kubectl -n {ns} rollout restart deployment/{name}-trainer   # only if the trainer hangs"),
    ),
    "StatusUnreadable": Remedy(
        "the trainer's own record in the store cannot be read",
        "The trainer writes the record again within a minute. If not, read its log. Rolls and rollbacks go on.",
        (TRAINER_LOG,),
        Severity.WARNING,
    ),
    "RecordsLost": Remedy(
        "the trainer is stopped, because the store has lost the records of the active version",
        "Put the records back, or begin again at version 0. The condition StorageReady says more.",
        (USAGE, RESTORE, START_OVER),
    ),
    "TakenOver": Remedy(
        "the trainer is stopped, because another speculator goes on with this root",
        "Delete this speculator once its clients use the new one, which StorageReady names.",
        (ALL_SPECULATORS, DELETE),
    ),
}
_OTHER_TRAINER = Remedy("the trainer does not run", "", (TRAINER_LOG,))
_STARVED = Remedy(
    "the trainer gets too little of its device, so the draft learns late",
    "Give its container more CPU or a GPU of its own in training.template, or lower training.replay.",
    ("kubectl -n {ns} edit auroraspeculator {name}   # spec.training",),
    Severity.WARNING,
)
_NO_TRACES = Remedy(
    "the trainer waits for traces",
    "There is little traffic, capture.sampleRatio is low, or capture drops traces: the agents count those in"
    " aurora_agent_dropped_records_total and aurora_agent_losses_total.",
    (
        "kubectl -n {ns} get auroraspeculator {name} -o jsonpath='{.spec.capture}'",
        "kubectl -n {ns} logs deployment/{name} -c agent --tail=50",
    ),
    Severity.WARNING,
)
_SUSPENDED = Remedy(
    "training is suspended, so no new candidates come",
    "",
    ('kubectl -n {ns} patch auroraspeculator {name} --type=merge -p \'{"spec":{"training":{"suspended":false}}}\'',),
    Severity.NOTE,
)
_FAILED = Remedy(
    "the candidate could not be measured",
    "The operator repeats the measurement after a growing delay. The Job's log says more. Once the cause is gone,"
    " measure again now.",
    ("kubectl -n {ns} logs job/{job} --tail=50", "kubectl aurora measure {name} -n {ns}"),
)
_STUCK = Remedy(
    "the candidate waits for its measurement",
    "The Job's pod does not start, or no replica can be spared. Where there is no room for another engine,"
    " validation.measureOn: Replica measures on a replica.",
    (
        "kubectl -n {ns} get jobs,pods -l app.kubernetes.io/instance={name}",
        "kubectl -n {ns} describe auroraspeculator {name}",
    ),
    Severity.WARNING,
)
_NOT_BEGUN = Remedy(
    "the candidate's measurement has not begun",
    "The message says what the candidate waits for. Held-out requests come from traced traffic: send requests, raise"
    " capture.sampleRatio above 0, and resume training if it is suspended. If none come in spite of traffic, read the"
    " agents' logs: agents count dropped traces in aurora_agent_dropped_records_total and aurora_agent_losses_total.",
    (
        "kubectl -n {ns} get auroraspeculator {name} -o jsonpath='{.spec.capture}'",
        "kubectl -n {ns} logs deployment/{name} -c agent --tail=50",
        TRAINER_LOG,
    ),
    Severity.WARNING,
)
_SUSPENDED_JOB = Remedy(
    "the candidate's measurement is suspended",
    "A queue or a person suspended its Job. A queue resumes the Job once it has room. Without a queue, resume the Job"
    " yourself.",
    (
        "kubectl -n {ns} get workloads.kueue.x-k8s.io",
        'kubectl -n {ns} patch job {job} --type=merge -p \'{"spec":{"suspend":false}}\'   # only without a queue',
    ),
    Severity.WARNING,
)
_NEVER_PASS = Remedy(
    "several candidates in a row did not pass",
    "Read the figures of each bar. Wide intervals need more rounds (validation.maxRounds, validation.promptsPerRound)"
    " or a quieter machine; gains below the bar need candidates that come less often (training.minGain).",
    ("kubectl aurora history {name} -n {ns}", "kubectl aurora evidence {name} VERSION -n {ns}"),
    Severity.WARNING,
)


def trainer_not_ready(snapshot: Snapshot) -> Iterator[Finding]:
    """The condition TrainerReady, unless the state of its pod explains it already."""
    condition = abnormal(snapshot, ConditionType.TRAINER_READY, ConditionStatus.FALSE)
    if condition is None or any(pod.cannot_run for pod in snapshot.pods_of(TRAINER)):
        return
    yield _TRAINER.get(condition.reason, _OTHER_TRAINER).finding(snapshot, condition_text(condition))


def trainer_starved(snapshot: Snapshot) -> Iterator[Finding]:
    """The trainer is slow while traces wait."""
    condition = abnormal(snapshot, ConditionType.TRAINER_READY, ConditionStatus.TRUE)
    if condition is not None and condition.reason == "Starved":
        yield _STARVED.finding(snapshot, condition_text(condition))


def no_candidates(snapshot: Snapshot) -> Iterator[Finding]:
    """Nothing is learned, because nothing is captured or because training is suspended."""
    status = snapshot.speculator.status
    condition = abnormal(snapshot, ConditionType.TRAINER_READY, ConditionStatus.TRUE)
    if condition is None:
        return
    if condition.reason == "Suspended":
        yield _SUSPENDED.finding(snapshot, condition_text(condition))
    elif condition.reason == "WaitingForTraces" and status.candidate is None:
        yield _NO_TRACES.finding(snapshot, f"{condition_text(condition)}; {status.traces} tokens traced")


def candidate_not_measured(snapshot: Snapshot) -> Iterator[Finding]:
    """A measurement that failed, or that does not begin or end."""
    candidate = snapshot.speculator.status.candidate
    if candidate is None:
        return
    evidence = f"version {candidate.version} is {candidate.phase}: {candidate.message}"
    condition = abnormal(snapshot, ConditionType.CANDIDATE_VALIDATED, ConditionStatus.UNKNOWN)
    if candidate.phase is CandidatePhase.FAILED:
        job = next((one for one in snapshot.jobs if one.name == candidate.job and one.failed), None)
        ended = f"; Job {job.name} failed: {job.message}" if job is not None else ""
        yield _FAILED.finding(snapshot, evidence + ended)
    elif condition is not None and condition.reason == "MeasurementSuspended":
        yield _SUSPENDED_JOB.finding(snapshot, evidence)
    elif candidate.waits_to_begin:
        yield _NOT_BEGUN.finding(snapshot, evidence)
    elif candidate.phase is CandidatePhase.VALIDATING and candidate.since is not None:
        does_not_start = "its pod does not start" in candidate.message
        explained = any(pod.cannot_run for pod in snapshot.pods_of(VALIDATOR))
        if (does_not_start and not explained) or snapshot.now - candidate.since > _longest_measurement(snapshot):
            yield _STUCK.finding(snapshot, evidence)


def _longest_measurement(snapshot: Snapshot) -> timedelta:
    """The time after which the Job of a measurement has ended, by the defaults if the spec cannot be read."""
    try:
        spec = snapshot.speculator.validation_spec()
    except Unreadable:
        spec = ValidationSpec()
    return timedelta(seconds=spec.job_deadline_seconds)


def candidates_never_pass(snapshot: Snapshot) -> Iterator[Finding]:
    """The last decisions about measurements all refused their candidate."""
    refused = []
    for entry in reversed(snapshot.speculator.status.history):
        if entry.event in ("Promoted", "Pinned"):
            break
        if entry.event in ("Rejected", "Inconclusive"):
            refused.append(entry)
    if len(refused) >= OFTEN:
        listed = ", ".join(f"{entry.version} {entry.event}" for entry in reversed(refused))
        yield _NEVER_PASS.finding(snapshot, f"{listed}; the last: {refused[0].message}")
