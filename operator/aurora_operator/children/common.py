"""What every child has in common: names, labels, the owner, the restricted security context, the environment.

Invariant: a child's name and labels follow from the custom resource alone, so that a restarted operator finds them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aurora_api import API_VERSION, KIND
from aurora_api.v1alpha1.spec import SpeculatorSpec
from aurora_api.v1alpha1.template import PodTemplate
from aurora_operator.children.owner import Owner
from aurora_operator.children.template_merge import merge
from aurora_operator.kubernetes_api import Object
from aurora_operator.operator_config import FIELD_MANAGER, OperatorConfig
from aurora_protocol.pod_settings import SETTINGS_VARIABLE, STATE_FOLDER, StoreSettings
from aurora_store.keys import root

USER_ID = 10001
INFERENCE, TRAINER, VALIDATOR = "inference", "trainer", "validator"
VERSION_LABEL, ATTEMPT_LABEL = "aurora.dev/version", "aurora.dev/attempt"
INSTANCE, COMPONENT = "app.kubernetes.io/instance", "app.kubernetes.io/component"
MANAGED = {"app.kubernetes.io/managed-by": FIELD_MANAGER}


def selector(owner: Owner, component: str = "") -> dict[str, str]:
    """Labels that find a speculator's objects, or those of one component. Immutable in workloads: never add to them."""
    labels = {"app.kubernetes.io/name": "aurora", INSTANCE: owner.name}
    return labels | ({COMPONENT: component} if component else {})


def selector_text(owner: Owner, component: str = "") -> str:
    return ",".join(f"{key}={value}" for key, value in selector(owner, component).items())


def keys_name(owner: Owner) -> str:
    """The Secret with the generated admin key and agent token."""
    return f"{owner.name}-keys"


def job_name(name: str, version: int, attempt: int) -> str:
    """The validation Job of one attempt: at most 63 characters, for a Job's name becomes a label."""
    return f"{name}-validate-v{version}-{attempt}"


def child(owner: Owner, api_version: str, kind: str, name: str, component: str = "", **body: Any) -> Object:
    """An owned object: Kubernetes deletes it with the custom resource."""
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": owner.namespace,
            "labels": selector(owner, component) | MANAGED,
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


def store_settings(owner: Owner, spec: SpeculatorSpec) -> StoreSettings:
    return StoreSettings(
        bucket=spec.store.bucket,
        root=root(spec.store.prefix, owner.namespace, owner.name, owner.uid),
        endpoint=spec.store.endpoint,
        region=spec.store.region,
    )


def environment(spec: SpeculatorSpec, settings: str, *, store: bool = True) -> list[Object]:
    """Variables of a container of ours; with ``store``, the store's credentials."""
    out: list[Object] = [
        {"name": SETTINGS_VARIABLE, "value": settings},
        {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "HOME", "value": "/tmp"},  # noqa: S108 - the pod's own emptyDir
        {"name": "USER", "value": "aurora"},
    ]
    reference = spec.store.credentials.secret_ref
    if store and reference is not None:
        out += [
            {"name": key, "valueFrom": {"secretKeyRef": {"name": reference.name, "key": key}}}
            for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        ]
    return out


def mapping(value: Any) -> Mapping[str, Any]:
    """What a user wrote where an object belongs; anything else is the API server's to refuse."""
    return value if isinstance(value, Mapping) else {}


def container_of(pod: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The container of a pod, or of a user's part of one; empty when there is none of this name."""
    listed = pod.get("containers")
    containers = [mapping(item) for item in listed] if isinstance(listed, list) else []
    return next((item for item in containers if item.get("name") == name), {})


def container(name: str, image: str, module: list[str], env: list[Object], **more: Any) -> Object:
    """A container that Pod Security's ``restricted`` profile admits, with a read-only root."""
    mounts = [
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - the pod's own emptyDir
        {"name": "state", "mountPath": STATE_FOLDER},
    ]
    return {
        "name": name,
        "image": image,
        "command": ["python", "-m", *module],
        "env": env,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        **more,
        "volumeMounts": mounts + more.get("volumeMounts", []),
    }


def pod_template(
    owner: Owner,
    spec: SpeculatorSpec,
    config: OperatorConfig,
    component: str,
    pod: Mapping[str, Any],
    *overrides: PodTemplate,
    **labels: str,
) -> Object:
    """Our pod template with the users' merged over it. Our own labels win: Services and selectors rely on them."""
    pulled = {
        kind: [{"imagePullPolicy": config.pull_policy, **item} for item in pod[kind]]
        for kind in ("initContainers", "containers")
        if kind in pod
    }
    secrets = {"imagePullSecrets": [{"name": name} for name in config.pull_secrets]} if config.pull_secrets else {}
    base = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "serviceAccountName": spec.store.credentials.service_account_name or owner.name,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **pod,
        **pulled,
        **secrets,
        "volumes": [
            {"name": "tmp", "emptyDir": {}},
            {"name": "state", "emptyDir": {}},
            *pod.get("volumes", []),
        ],
    }
    metadata: dict[str, Any] = {}
    for override in overrides:
        base = merge(base, override.spec)
        metadata = merge(metadata, override.metadata.model_dump(exclude_defaults=True))
    metadata["labels"] = metadata.get("labels", {}) | selector(owner, component) | MANAGED | labels
    return {"metadata": metadata, "spec": base}
