"""Can the operator use the store? Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from aurora_cli.doctor.facts import Snapshot
from aurora_cli.doctor.finding import LIST_RELEASES, Finding, Remedy, Severity, abnormal, condition_text

from aurora_api.v1alpha1.conditions import ConditionStatus, ConditionType

_CREATE = (
    "kubectl -n {ns} create secret generic {secret} --from-env-file=FILE"
    "   # FILE has AWS_ACCESS_KEY_ID=… and AWS_SECRET_ACCESS_KEY=…"
)
_REPLACE = (
    "kubectl -n {ns} create secret generic {secret} --from-env-file=FILE --dry-run=client -o yaml | kubectl apply -f -"
)
_EDIT_STORE = "kubectl -n {ns} edit auroraspeculator {name}   # spec.store"
USAGE: Final = "kubectl aurora store du {name} -n {ns}"
RESTORE: Final = "aws{at_endpoint} s3 cp --recursive BACKUP s3://{bucket}/{root}   # BACKUP has a copy of the root"
START_OVER: Final = "kubectl aurora start-over {name} -n {ns}   # only if the records are gone for good"
ALL_SPECULATORS: Final = "kubectl get auroraspeculators -A"
DELETE: Final = "kubectl -n {ns} delete auroraspeculator {name}   # only if its clients use the new one"

STORAGE: Final[Mapping[str, Remedy]] = {
    "SecretMissing": Remedy("the Secret with the store's keys does not exist", "Create it.", (_CREATE,)),
    "SecretIncomplete": Remedy(
        "the Secret with the store's keys lacks a key", "Write it again with both keys.", (_REPLACE,)
    ),
    "SecretForbidden": Remedy(
        "the operator may not read a Secret of the speculator",
        "Ask the operator's administrator to add its name to secretNames of the chart, beside those that are there.",
        (LIST_RELEASES, "helm get values -n {operator_ns} RELEASE   # secretNames"),
    ),
    "SigningKeysMissing": Remedy(
        "the keys that sign the store's records are being made, or somebody changed them",
        "Wait a minute. If the message then names the Secret, put it back from a backup.",
        ("kubectl -n {ns} describe secret {name}-keys",),
        Severity.WARNING,
    ),
    "StoreNotAllowed": Remedy(
        "the operator's administrator allows this store for no speculator of the namespace",
        "Use an allowed store, or ask the operator's administrator to add it to stores.allowed of the chart.",
        (_EDIT_STORE,),
    ),
    "AddressRefused": Remedy(
        "the operator refuses to connect to the address of store.endpoint",
        "Ask the operator's administrator to add the host to stores.internalHosts of the chart.",
        (LIST_RELEASES, "helm get values -n {operator_ns} RELEASE   # stores.internalHosts"),
    ),
    "KeysRequired": Remedy(
        "store.endpoint is set without a Secret with the store's keys",
        "Name a Secret in store.credentials.secretRef, or use AWS S3.",
        (_EDIT_STORE,),
    ),
    "Unreachable": Remedy(
        "the store does not answer, or refuses the operator's requests",
        "Check endpoint, network and keys. If a right is missing, the message names the right.",
        (_EDIT_STORE, _REPLACE),
    ),
    "ConditionalWritesUnsupported": Remedy(
        "the store does not honour create-once writes, so two writers could overwrite each other",
        "Use a store that honours PutObject If-None-Match: *.",
        (_EDIT_STORE,),
    ),
    "InvalidRecord": Remedy(
        "the operator does not believe an object below the speculator's root",
        "Find out who wrote the object that the message names. A newer operator: upgrade this one again. An operator"
        " whose signing keys are lost: see InvalidRecord in docs/reference/conditions.md. Anybody else: delete the"
        " object. Nothing is decided until then. The aws commands need keys of the store.",
        (
            "aws{at_endpoint} s3 cp s3://{bucket}/{root}/KEY -",
            "aws{at_endpoint} s3 rm s3://{bucket}/{root}/KEY   # only if no operator wrote the object",
        ),
    ),
    "TakingOver": Remedy(
        "the root of the former speculator is being taken over", "Wait for the next reconcile.", (), Severity.NOTE
    ),
    "RestoreRefused": Remedy(
        "the root that store.restoreFrom names cannot be taken over",
        "The message says why. The field is immutable, so create the speculator again.",
        ("kubectl -n {ns} get auroraspeculator {name} -o yaml",),
    ),
    "RecordsLost": Remedy(
        "the store can be read, and has lost the records of the active version",
        "Find out who deleted them, or whether store.endpoint leads to another store. Put the records back from a"
        " backup, at least lineage/, registry/, checkpoints/, evidence/ and channel/. The aws command names the store"
        " of the spec, so correct the spec first, and use keys of that store. If the records are gone for good, begin"
        " again at version 0.",
        (USAGE, _EDIT_STORE, RESTORE, START_OVER),
    ),
    "TakenOver": Remedy(
        "another speculator restored this speculator's root",
        "Delete this speculator once its clients use the new one, which the message names.",
        (ALL_SPECULATORS, DELETE),
    ),
}
_OTHER = Remedy("the store cannot be used", "", (_EDIT_STORE,))


def store_unusable(snapshot: Snapshot) -> Iterator[Finding]:
    """The condition StorageReady."""
    condition = abnormal(snapshot, ConditionType.STORAGE_READY, ConditionStatus.FALSE)
    if condition is not None:
        yield STORAGE.get(condition.reason, _OTHER).finding(snapshot, condition_text(condition))
