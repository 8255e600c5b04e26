"""A finding: what is wrong, how that is known, and the command that mends it. Pure.

Invariant: a command holds names that the API server has validated, and in quotes the flags that choose the cluster. It
never holds a message. So a person can paste it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final

from aurora_api.v1alpha1.conditions import Condition, ConditionStatus, ConditionType
from aurora_api.v1alpha1.store import ENDPOINT_PATTERN, ROOT_PATTERN
from aurora_cli.doctor.facts import Snapshot
from aurora_cli.speculator import Speculator

USUAL_OPERATOR_NAMESPACE: Final = "aurora-system"
LIST_RELEASES: Final = "helm list -n {operator_ns}"
"""Shows the name of the operator's release, which a command with RELEASE needs."""


class Severity(IntEnum):
    """How much a finding matters. The lowest number comes first."""

    PROBLEM = 1
    """Something does not work, and requires manual action."""
    WARNING = 2
    """Something works less well than it should, or may require manual action."""
    NOTE = 3
    """A person's decision or a state that explains what is seen."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or that explains what is seen."""

    severity: Severity
    title: str
    evidence: str = ""
    """How that is known: a condition with its message, an event, a pod's state."""
    advice: str = ""
    """What to do, in words."""
    commands: Sequence[str] = ()
    """What to run: the command that mends it, or the one that shows the cause."""

    def in_cluster(self, kubectl_flags: Sequence[str]) -> Finding:
        """The same with commands that reach the cluster of these flags."""
        return replace(self, commands=tuple(_in_cluster(command, kubectl_flags) for command in self.commands))


def _in_cluster(command: str, kubectl_flags: Sequence[str]) -> str:
    """``command`` with the flags after each program. kubectl accepts flags of a plugin only after the plugin's name."""

    def with_flags(program: re.Match[str]) -> str:
        flags = [re.sub("^--context=", "--kube-context=", one) if program[2] else one for one in kubectl_flags]
        return " ".join((program[0], *map(shlex.quote, flags)))

    return re.sub(r"(^|\| )(?:kubectl aurora|kubectl|(helm))(?= )", with_flags, command)


Rule = Callable[[Snapshot], Iterator[Finding]]


@dataclass(frozen=True)
class Remedy:
    """What a reason of a condition means, and what to do. Texts may hold the fields of :func:`filled`."""

    title: str
    advice: str = ""
    commands: Sequence[str] = ()
    severity: Severity = Severity.PROBLEM

    def finding(self, snapshot: Snapshot, evidence: str) -> Finding:
        """The finding of this remedy for one speculator."""
        return Finding(
            self.severity,
            filled(self.title, snapshot),
            evidence,
            filled(self.advice, snapshot),
            tuple(filled(command, snapshot) for command in self.commands),
        )


def filled(text: str, snapshot: Snapshot) -> str:
    """``text`` with its fields filled in.

    The fields are namespaces ({ns}, {operator_ns}), the speculator's name, the Secret of the store ({secret}), the
    candidate's Job, and the store's place: see :func:`_store_place`.
    """
    one = snapshot.speculator
    credentials = one.section("store").get("credentials") or {}
    reference = credentials.get("secretRef") or {}
    candidate = one.status.candidate
    values = {
        "{ns}": one.namespace,
        "{operator_ns}": operator_namespace(snapshot),
        "{name}": one.name,
        "{secret}": str(reference.get("name") or "SECRET"),
        "{job}": (candidate.job if candidate else None) or "JOB",
        **_store_place(one),
    }
    for field, value in values.items():
        text = text.replace(field, value)
    return text


def _store_place(speculator: Speculator) -> Mapping[str, str]:
    """Bucket, root and the option of ``aws`` for the endpoint, quoted for a shell. What is unknown stays a placeholder.

    Why: without the option, ``aws`` would act on AWS, for example on a bucket of the same name that is somebody else's.
    """
    store = speculator.section("store")
    endpoint = str(store.get("endpoint") or "")
    if endpoint and not re.fullmatch(ENDPOINT_PATTERN, endpoint):
        endpoint = "ENDPOINT"
    root = speculator.status.store_root or str(store.get("restoreFrom") or "")
    return {
        "{bucket}": shlex.quote(str(store.get("bucket") or "BUCKET")),
        "{root}": root if re.fullmatch(ROOT_PATTERN, root) else "ROOT",
        "{at_endpoint}": f" --endpoint-url {shlex.quote(endpoint)}" if endpoint else "",
    }


def operator_namespace(snapshot: Snapshot) -> str:
    """The namespace of the operator that acts on the speculator, or the usual one where the status names none."""
    lease = snapshot.speculator.operator_lease
    return lease[0] if lease else USUAL_OPERATOR_NAMESPACE


def condition_text(condition: Condition) -> str:
    """A condition as evidence: ``StorageReady=False Unreachable: get channel/: timed out``."""
    text = f"{condition.type}={condition.status} {condition.reason}"
    return f"{text}: {condition.message}" if condition.message else text


def abnormal(snapshot: Snapshot, type_: ConditionType, status: ConditionStatus) -> Condition | None:
    """The condition, if it has the abnormal status."""
    condition = snapshot.speculator.condition(type_)
    return condition if condition is not None and condition.status is status else None
