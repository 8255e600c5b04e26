"""Does an operator act on the speculator at all, and can it use the spec? Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Final

from aurora_api.v1alpha1.conditions import ConditionStatus, ConditionType
from aurora_cli.doctor.facts import Snapshot
from aurora_cli.doctor.finding import LIST_RELEASES, Finding, Remedy, Severity, abnormal, condition_text

OPERATOR_LOG: Final = "kubectl logs -n {operator_ns} -l app.kubernetes.io/name=aurora-operator --prefix --tail=100"
NEW: Final = timedelta(seconds=30)
"""How long a speculator may be without a status."""
TAKEOVER: Final = timedelta(minutes=1)
"""How long after a Lease's end another replica of the operator may need to take the Lease."""
RECENT: Final = timedelta(hours=24)
DELETION: Final = timedelta(minutes=15)
"""How long a deletion usually takes at most. The operator waits 10 minutes for the pods, then deletes the objects.
Many objects or older versions take longer."""
_DELETION_FAILS: Final = "the operator tries again"
"""In the message of Ready while the store prevents the deletion."""

_DELETED = Remedy(
    "the speculator is being deleted, and the operator deletes its stored data first",
    "Wait. The operator waits up to 10 minutes for the pods to end, and then deletes the objects.",
    severity=Severity.NOTE,
)
_DELETION_STUCK = Remedy(
    "the deletion of the speculator does not get on",
    "Read why, and mend the store. The operator then goes on. The last command tells the operator to end the deletion."
    " The stored data then stay in the bucket, with the traces of users. Use it only if the data may stay, or if no"
    " store holds them any more.",
    (
        OPERATOR_LOG,
        "kubectl aurora store du {name} -n {ns}",
        "kubectl -n {ns} patch auroraspeculator {name} --type=merge"
        """ -p '{"spec":{"store":{"deletionPolicy":"Retain"}}}'   # only if the stored data may stay""",
    ),
    Severity.WARNING,
)
_DELETION_LONG = Remedy(
    "the deletion of the speculator takes longer than usual",
    "The operator has reported no failure. Many objects, or many older versions of objects, take their time. The"
    " operator's log says how far the deletion is. If no operator runs, the deletion waits for one.",
    (OPERATOR_LOG, "kubectl aurora store du {name} -n {ns}"),
    Severity.WARNING,
)
_NO_STATUS = Remedy(
    "no operator acts on the speculator",
    "The operator does not run, or does not watch this namespace (the chart's watchNamespaces, or a shard's label).",
    ("kubectl get pods -A -l app.kubernetes.io/name=aurora-operator", OPERATOR_LOG),
)
_STOPPED = Remedy(
    "the operator does not run, so the status is out of date",
    "Its pods and its log say why. Inference pods go on serving meanwhile. If the operator does run, set the clock of"
    " this machine: the Lease's time is compared with that clock.",
    ("kubectl get pods -A -l app.kubernetes.io/name=aurora-operator", OPERATOR_LOG),
)
_UNSEEN = Remedy(
    "the operator has not acted on the present spec",
    "A change takes a second. If this stays, the operator is stopped, or cannot reach the API server.",
    ("kubectl get pods -A -l app.kubernetes.io/name=aurora-operator", OPERATOR_LOG),
    Severity.WARNING,
)
_YIELDED = Remedy(
    "two installations of the operator want to act on the speculator",
    "Give each its own namespaces, or uninstall one of the two. The other one then acts within 13 minutes.",
    ("kubectl get leases -A", "helm list -A"),
)
_SPEC: Final[Mapping[str, Remedy]] = {
    "InvalidSpec": Remedy(
        "the operator cannot use the spec",
        "Correct the field that the message names. Pods keep serving meanwhile.",
        ("kubectl -n {ns} edit auroraspeculator {name}",),
    ),
    "NameTaken": Remedy(
        "an object of another owner has a name that the speculator needs",
        "Create the speculator under another name, or delete the object if nobody needs it. The operator does not touch"
        " it.",
        ("kubectl -n {ns} get deployments,services,serviceaccounts,networkpolicies,poddisruptionbudgets",),
    ),
}
_DEGRADED: Final[Mapping[str, Remedy]] = {
    "ApplyRefused": Remedy(
        "the API server refuses an object of the speculator",
        "Correct the pod template, the quota or the operator's rights, as the message says.",
        (
            "kubectl -n {ns} edit auroraspeculator {name}",
            "kubectl -n {ns} describe resourcequotas",
        ),
    ),
    "PinRefused": Remedy(
        "the pinned version never passed its measurement, so nothing is rolled out",
        "Unset the pin, or pin a version that passed.",
        ("kubectl aurora unpin {name} -n {ns}", "kubectl aurora history {name} -n {ns}"),
    ),
    "RegistrationMissing": Remedy(
        "the store lost the registration of a version that pods may have to take",
        "Put the record that the message names back, from a backup of the bucket. Or pin a version that is registered.",
        ("kubectl aurora store verify {name} -n {ns}", "kubectl aurora pin {name} VERSION -n {ns}"),
    ),
    "WeightsDiffer": Remedy(
        "pods that should serve the same draft hold different weights",
        "Delete the pod that differs, and report it.",
        (
            "kubectl aurora status {name} -n {ns}",
            "kubectl -n {ns} delete pod POD   # only the pod whose column WEIGHTS differs",
        ),
    ),
    "SwapFailed": Remedy(
        "a pod cannot return to the active version",
        "Read why, then delete the pod that the message names.",
        (
            "kubectl -n {ns} logs deployment/{name} -c agent --tail=100",
            "kubectl -n {ns} delete pod POD   # only the pod that the message names",
        ),
    ),
}
_OTHER_DEGRADED = Remedy("something requires manual action", "", ("kubectl -n {ns} describe auroraspeculator {name}",))
_UPGRADE: Final[Mapping[str, Remedy]] = {
    "UpgradeFailed": Remedy(
        "the pods do not come up with the upgraded operator's template",
        "Correct the cause, or roll the operator back. Other speculators wait for this one. To let them go on, set"
        " serving.update.operatorUpgrade: WithSpec here: the pods then keep the template that failed"
        " (docs/how-to/upgrading.md).",
        (
            "kubectl -n {ns} describe pods -l app.kubernetes.io/instance={name}",
            LIST_RELEASES,
            "helm history -n {operator_ns} RELEASE",
            "kubectl -n {ns} patch auroraspeculator {name} --type=merge"
            """ -p '{"spec":{"serving":{"update":{"operatorUpgrade":"WithSpec"}}}}'   # only to let the others go on""",
        ),
    ),
    "OrderStopped": Remedy(
        "the upgrade waits, because the upgrade of another speculator failed",
        "The operator's log names that speculator. If its cause cannot be corrected soon, its owner can let the others"
        " go on: serving.update.operatorUpgrade: WithSpec there (docs/how-to/upgrading.md).",
        (OPERATOR_LOG,),
        Severity.WARNING,
    ),
    "WaitingForSpec": Remedy(
        "the pods have the template of a former operator until the serving settings change",
        "serving.update.operatorUpgrade is WithSpec.",
        (),
        Severity.NOTE,
    ),
}


def operator_absent(snapshot: Snapshot) -> Iterator[Finding]:
    """Nobody has written a status."""
    one = snapshot.speculator
    new = one.created is not None and snapshot.now - one.created < NEW
    if not one.has_status and not new:
        yield _NO_STATUS.finding(snapshot, "the resource has no status")


def operator_stopped(snapshot: Snapshot) -> Iterator[Finding]:
    """No replica of the operator that acted on the speculator renews its Lease."""
    lease = snapshot.lease
    if lease is None:
        return
    if lease.renewed is None:
        yield _STOPPED.finding(snapshot, f"the Lease {lease.name} does not exist, or was never renewed")
    elif snapshot.now - lease.renewed > timedelta(seconds=lease.duration_seconds) + TAKEOVER:
        renewed = lease.renewed.isoformat(timespec="seconds")
        yield _STOPPED.finding(snapshot, f"the Lease {lease.name} was last renewed at {renewed}")


def operator_yielded(snapshot: Snapshot) -> Iterator[Finding]:
    """Lately an installation left the speculator to another one."""
    event = snapshot.last_event("OperatorYielded")
    if event is not None and event.last is not None and snapshot.now - event.last < RECENT:
        yield _YIELDED.finding(snapshot, f"event OperatorYielded: {event.message}")


def spec_unusable(snapshot: Snapshot) -> Iterator[Finding]:
    """The spec, or an object with a name that is needed, stands in the way."""
    for type_ in (ConditionType.INVALID_SPEC, ConditionType.NAME_TAKEN):
        condition = abnormal(snapshot, type_, ConditionStatus.TRUE)
        if condition is not None:
            yield _SPEC[type_.value].finding(snapshot, condition_text(condition))


def degraded(snapshot: Snapshot) -> Iterator[Finding]:
    """The condition Degraded."""
    condition = abnormal(snapshot, ConditionType.DEGRADED, ConditionStatus.TRUE)
    if condition is not None:
        yield _DEGRADED.get(condition.reason, _OTHER_DEGRADED).finding(snapshot, condition_text(condition))


def upgrade_pending(snapshot: Snapshot) -> Iterator[Finding]:
    """The condition UpgradePending. A restart that goes on, or waits for its turn, needs nobody."""
    condition = abnormal(snapshot, ConditionType.UPGRADE_PENDING, ConditionStatus.TRUE)
    if condition is not None and condition.reason in _UPGRADE:
        yield _UPGRADE[condition.reason].finding(snapshot, condition_text(condition))


def being_deleted(snapshot: Snapshot) -> Iterator[Finding]:
    """The resource waits for the deletion of its stored data."""
    since = snapshot.speculator.deleted
    if since is None:
        return
    ready = abnormal(snapshot, ConditionType.READY, ConditionStatus.FALSE)
    reported = ready if ready is not None and ready.reason == "Deleting" else None
    fails = reported is not None and _DELETION_FAILS in reported.message
    late = snapshot.now - since > DELETION
    remedy = _DELETION_STUCK if fails else _DELETION_LONG if late else _DELETED
    requested = f"metadata.deletionTimestamp is {since.isoformat(timespec='seconds')}"
    yield remedy.finding(snapshot, condition_text(reported) if reported else requested)


def spec_unseen(snapshot: Snapshot) -> Iterator[Finding]:
    """The status is about an older spec."""
    one = snapshot.speculator
    if one.has_status and one.status.observed_generation < one.generation:
        evidence = (
            f"metadata.generation is {one.generation}, status.observedGeneration {one.status.observed_generation}"
        )
        yield _UNSEEN.finding(snapshot, evidence)
