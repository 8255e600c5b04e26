"""Tells a speculator's own pods from other pods that carry its labels. Pure.

Anybody who may create pods can give them our labels. Such a pod would get the agents' token, be counted as a replica,
and be asked to swap. So a pod is ours only if one of our workloads controls it.

ReplicaSets are not watched. Their names follow from the Deployment's, and Kubernetes gives a name only once.
"""

from __future__ import annotations

from collections.abc import Mapping

from aurora_operator.children.metadata import (
    INFERENCE,
    JOB_LABEL,
    TEMPLATE_HASH_LABEL,
    TRAINER,
    VALIDATOR,
    component_of,
    job_prefix,
    trainer_name,
)
from aurora_operator.children.owner import Owner
from aurora_operator.kubernetes_api import Object


def is_own_pod(owner: Owner, pod: Object, known: Mapping[tuple[str, str], Object]) -> bool:
    """Whether the Deployment or Job that controls ``pod`` is ours.

    Args:
        known: objects with our labels, by kind and name. A workload that is not among them is judged by its name alone,
            because a pod may outlive it.
    """
    references = pod["metadata"].get("ownerReferences") or ()
    controller = next((reference for reference in references if reference.get("controller")), None)
    if controller is None:
        return False
    component, labels = component_of(pod), pod["metadata"].get("labels") or {}
    if component == VALIDATOR:
        job = labels.get(JOB_LABEL, "")
        named = (controller["kind"], controller["name"]) == ("Job", job) and job.startswith(job_prefix(owner.name))
        workload = known.get(("Job", job))
        return named and (workload is None or (owner.owns(workload) and _uid(workload) == controller["uid"]))
    deployment = {INFERENCE: owner.name, TRAINER: trainer_name(owner)}.get(component)
    replica_set = f"{deployment}-{labels.get(TEMPLATE_HASH_LABEL)}"
    named = (controller["kind"], controller["name"]) == ("ReplicaSet", replica_set)
    workload = known.get(("Deployment", deployment or ""))
    return named and (workload is None or owner.owns(workload))


def _uid(obj: Object) -> str:
    return str(obj["metadata"]["uid"])
