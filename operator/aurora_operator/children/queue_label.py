"""Which workloads name a queue of Kueue. Pure.

Kueue reads its label on a Deployment or Job. It refuses to change the label on a Deployment with ready pods, and never
lets one remove it. A refused label would refuse every other change of the Deployment with it.

Invariants:

- The inference Deployment carries no label of Kueue, so Kueue neither queues serving nor refuses a change of it.
- An existing Deployment is never applied with a label that Kueue refuses.
"""

from __future__ import annotations

from typing import Final

from aurora_operator.kubernetes_api import Object

KUEUE_PREFIX: Final = "kueue.x-k8s.io/"
QUEUE_LABEL: Final = f"{KUEUE_PREFIX}queue-name"
"""Kueue holds the workload back until the named queue admits it."""


def without_queue(obj: Object) -> Object:
    """``obj``, a workload or a pod template, without any label of Kueue."""
    labels = {key: value for key, value in obj["metadata"]["labels"].items() if not key.startswith(KUEUE_PREFIX)}
    return {**obj, "metadata": {**obj["metadata"], "labels": labels}}


def with_accepted_queue(deployment: Object, stored_queue: str, ready: int) -> Object:
    """``deployment`` with the wanted queue if Kueue accepts the change, else with the queue of the stored Deployment.

    A kept queue is kept in the pods' template too, because Kueue copies it there.

    Args:
        stored_queue: value of the label on the stored Deployment; empty without one.
        ready: number of ready pods of the stored Deployment.
    """
    wanted = deployment["metadata"]["labels"].get(QUEUE_LABEL, "")
    if wanted == stored_queue or (wanted and ready == 0):
        return deployment
    kept = _labelled(deployment, stored_queue)
    if not stored_queue:
        return kept
    template = _labelled(kept["spec"]["template"], stored_queue)
    return {**kept, "spec": {**kept["spec"], "template": template}}


def _labelled(obj: Object, queue: str) -> Object:
    others = {key: value for key, value in obj["metadata"]["labels"].items() if key != QUEUE_LABEL}
    labels = others | ({QUEUE_LABEL: queue} if queue else {})
    return {**obj, "metadata": {**obj["metadata"], "labels": labels}}
