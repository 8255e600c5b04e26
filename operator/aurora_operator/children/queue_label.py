"""Which workloads name a queue of Kueue and a priority in it. Pure.

Kueue reads its labels on a Deployment or Job. It refuses to change the queue on a Deployment with ready pods, and never
lets one remove it. It does the same with the priority class (pkg/controller/jobframework/validation.go). Since version
0.15 Kueue accepts a changed class on a Deployment with ready pods, but not an added one. The operator does not know the
version, so it keeps to the stricter rule. A refused label would refuse every other change of the Deployment with it.

Invariants:

- The inference Deployment carries no label of Kueue, so Kueue neither queues serving nor refuses a change of it.
- An existing Deployment is never applied with a label that Kueue refuses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from aurora_operator.kubernetes_api import Object

KUEUE_PREFIX: Final = "kueue.x-k8s.io/"
QUEUE_LABEL: Final = f"{KUEUE_PREFIX}queue-name"
"""Kueue holds the workload back until the named queue admits it."""
PRIORITY_LABEL: Final = f"{KUEUE_PREFIX}priority-class"
"""The workload's priority in its queue."""
_GUARDED: Final = (QUEUE_LABEL, PRIORITY_LABEL)


def without_queue(obj: Object) -> Object:
    """``obj``, a workload or a pod template, without any label of Kueue."""
    labels = {key: value for key, value in obj["metadata"]["labels"].items() if not key.startswith(KUEUE_PREFIX)}
    return {**obj, "metadata": {**obj["metadata"], "labels": labels}}


def guarded_labels(labels: Mapping[str, str]) -> Mapping[str, str]:
    """Those of ``labels`` whose change Kueue may refuse."""
    return {label: labels[label] for label in _GUARDED if labels.get(label)}


def refused_changes(wanted: Mapping[str, str], stored: Mapping[str, str], ready: int) -> Mapping[str, str]:
    """The labels that Kueue does not let change now, with the values that stay; empty for a label that is not there.

    Args:
        wanted: labels of the Deployment to apply.
        stored: labels of the stored Deployment.
        ready: number of ready pods of the stored Deployment.
    """
    changed = [label for label in _GUARDED if wanted.get(label, "") != stored.get(label, "")]
    return {label: stored.get(label, "") for label in changed if ready > 0 or not wanted.get(label)}


def with_accepted_labels(deployment: Object, stored: Mapping[str, str], ready: int) -> Object:
    """``deployment`` with the wanted queue and priority where Kueue accepts the change, else with those of ``stored``.

    A kept label is kept in the pods' template too. Kueue copies the queue there, and a new label ends the former pod.
    """
    for label, kept in refused_changes(deployment["metadata"]["labels"], stored, ready).items():
        deployment = _labelled(deployment, label, kept)
        if kept:
            template = _labelled(deployment["spec"]["template"], label, kept)
            deployment = {**deployment, "spec": {**deployment["spec"], "template": template}}
    return deployment


def _labelled(obj: Object, label: str, value: str) -> Object:
    others = {key: each for key, each in obj["metadata"]["labels"].items() if key != label}
    labels = others | ({label: value} if value else {})
    return {**obj, "metadata": {**obj["metadata"], "labels": labels}}
