"""The owner of the children: their names, labels and owner references, and which pods are its own. Pure.

Invariant: a child's name and labels follow from the custom resource, and for a Job from version and attempt as well. So
a restarted operator finds its children.

Anybody who may create pods can give them our labels. Such a pod would get the agents' token, be counted as a replica,
and be asked to swap. So a pod is ours only if one of our workloads controls it. ReplicaSets are not watched. Their
names follow from the Deployment's, and Kubernetes gives a name only once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aurora_api import API_VERSION, KIND
from aurora_operator.kubernetes_api import Object
from aurora_operator.operator_config import OPERATOR_NAME

INFERENCE, TRAINER, VALIDATOR = "inference", "trainer", "validator"
"""Values of the component label."""
JOB_LABEL, TEMPLATE_HASH_LABEL = "batch.kubernetes.io/job-name", "pod-template-hash"
"""Labels that Kubernetes gives the pods of a Job, and those of a Deployment."""
ENGINE_CONTAINER, AGENT_CONTAINER = "sglang", "agent"
"""The containers of an inference pod: the engine, and the agent beside it."""
VERSION_LABEL, ATTEMPT_LABEL = "aurora.dev/version", "aurora.dev/attempt"
FINALIZER = "aurora.dev/stored-data"
"""Keeps a speculator with ``store.deletionPolicy: Delete`` until its objects in the store are deleted."""
INSTANCE_LABEL, COMPONENT_LABEL = "app.kubernetes.io/instance", "app.kubernetes.io/component"
COMMON_LABELS = {"app.kubernetes.io/managed-by": OPERATOR_NAME}
"""Labels of every child and pod, besides those of :func:`selector`.

Workloads' selectors are immutable: add labels here, not to :func:`selector`. A label that is added restarts all pods,
because their template changes. The operator watches by these labels: until the next apply, children without a new label
send no events.
"""


@dataclass(frozen=True)
class Owner:
    """The custom resource's identity."""

    namespace: str
    name: str
    uid: str
    generation: int
    resource_version: str
    adopts: bool = False
    """A person made it the successor of a former speculator, with the annotation ``aurora.dev/adopt``."""

    @property
    def full_name(self) -> str:
        """``namespace/name``, as log lines show it."""
        return f"{self.namespace}/{self.name}"

    def owns(self, obj: Mapping[str, Any]) -> bool:
        """Whether this speculator controls ``obj``. Any other object belongs to somebody else.

        A plain owner reference does not count: a user may add one, so that Kubernetes deletes the user's object
        together with the speculator.
        """
        references = obj["metadata"].get("ownerReferences") or ()
        return any(reference["uid"] == self.uid and reference.get("controller") for reference in references)


def selector(owner: Owner, component: str = "") -> dict[str, str]:
    """Labels that find a speculator's objects, or those of one component."""
    labels = {"app.kubernetes.io/name": "aurora", INSTANCE_LABEL: owner.name}
    return labels | ({COMPONENT_LABEL: component} if component else {})


def selector_text(owner: Owner, component: str = "") -> str:
    """:func:`selector` in the form that the API server's ``labelSelector`` takes."""
    return ",".join(f"{key}={value}" for key, value in selector(owner, component).items())


def component_of(obj: Mapping[str, Any]) -> str:
    """The component label of a child; empty when there is none."""
    return str(obj["metadata"].get("labels", {}).get(COMPONENT_LABEL, ""))


def has_finalizer(stored: Mapping[str, Any]) -> bool:
    """Whether a stored custom resource carries our finalizer."""
    return FINALIZER in (stored["metadata"].get("finalizers") or ())


def keys_name(owner: Owner) -> str:
    """The name of the Secret with the generated keys: admin key, agent token and the keys that sign stored records."""
    return f"{owner.name}-keys"


def trainer_name(owner: Owner) -> str:
    """The name of the trainer's Deployment."""
    return f"{owner.name}-trainer"


def job_name(name: str, version: int, attempt: int) -> str:
    """The name of one attempt's validation Job: at most 63 characters, because a Job's name becomes a label."""
    return f"{job_prefix(name)}{version}-{attempt}"


def job_prefix(name: str) -> str:
    """The beginning of the name of each validation Job."""
    return f"{name}-validate-v"


def child(owner: Owner, api_version: str, kind: str, name: str, component: str = "", **body: Any) -> Object:
    """An owned object: Kubernetes deletes it with the custom resource."""
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": owner.namespace,
            "labels": selector(owner, component) | COMMON_LABELS,
            "ownerReferences": [
                {
                    "apiVersion": API_VERSION,
                    "kind": KIND,
                    "name": owner.name,
                    "uid": owner.uid,
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
        },
        **body,
    }


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
