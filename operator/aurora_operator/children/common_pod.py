"""The parts that all pods of the operator share: containers, environment, security context, user template. Pure.

A user's partial template merges over ours. Lists merge as in Kubernetes' strategic merge patch, by the key that
Kubernetes declares for the field. A list without such a key is replaced. ``null`` removes a key.
:mod:`aurora_api.v1alpha1.template` refuses a template that removes what our containers need.

Invariants:

- Without a user's template, every pod passes Pod Security's ``restricted`` profile. No container writes to another
  one's ``/tmp``. Every volume that a pod may fill has a limit.
- Merging an empty template changes nothing. Merging twice gives the same as merging once. Our own items keep their
  order. Everything that the user does not name stays ours.
- A value of the wrong type in a user's template reads as absent. The API server refuses it later, in its own words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from aurora_api.v1alpha1.spec import SpeculatorSpec
from aurora_api.v1alpha1.store import RoleCredentials, StoreRole
from aurora_api.v1alpha1.target import MODEL_MOUNT, ModelSource
from aurora_api.v1alpha1.template import PodTemplate
from aurora_operator.children.metadata import (
    COMMON_LABELS,
    ENGINE_CONTAINER,
    INFERENCE,
    TRAINER,
    VALIDATOR,
    Owner,
    selector,
)
from aurora_operator.kubernetes_api import Object
from aurora_operator.operator_config import OperatorConfig
from aurora_protocol.pod_settings import (
    ACCESS_KEY,
    SECRET_KEY,
    SETTINGS_VARIABLE,
    STATE_FOLDER,
    STORE_KEYS_FOLDER,
    STORE_KEYS_VARIABLE,
    StoreSettings,
)
from aurora_store.keys import owner_id, root

USER_ID = 10001
STATE_LIMIT = "64Gi"
"""Drafts and up to 4 GiB of traces in an inference pod; shards and saved states in the trainer's."""
TMP_LIMIT = "1Ti"
"""Packages of the container compile into ``/tmp``, and a model from Hugging Face is downloaded there."""
HELPER_TMP_LIMIT = "1Gi"
_MODEL_READERS = (ENGINE_CONTAINER, TRAINER, VALIDATOR)
"""Containers that read the target's files."""
_STORE_KEYS = "store-keys"
_HELPERS = ("stage", "agent")
"""Containers that keep nothing large in ``/tmp``."""
_ROLES = {INFERENCE: StoreRole.SERVING, TRAINER: StoreRole.TRAINING, VALIDATOR: StoreRole.VALIDATION}


def store_credentials(spec: SpeculatorSpec, component: str) -> RoleCredentials:
    """How the pods of ``component`` authenticate to the store."""
    return spec.store.credentials.of(_ROLES[component])


def store_settings(owner: Owner, spec: SpeculatorSpec) -> StoreSettings:
    """Where the speculator's objects lie in the store; credentials are not part of it."""
    return StoreSettings(
        bucket=spec.store.bucket,
        root=root(spec.store.prefix, spec.store.path, owner.namespace, owner.name),
        owner=owner_id(owner.uid),
        endpoint=spec.store.endpoint,
        region=spec.store.region,
    )


def environment(settings: str) -> list[Object]:
    """Environment variables of one of our containers."""
    return [
        {"name": SETTINGS_VARIABLE, "value": settings},
        {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "HOME", "value": "/tmp"},  # noqa: S108 - the pod's own emptyDir
        {"name": "USER", "value": "aurora"},
        {"name": "PYTHONSAFEPATH", "value": "1"},  # for the processes that ours start
        {"name": "PYTHONNOUSERSITE", "value": "1"},  # the user's site would be below HOME, which is /tmp
    ]


def with_store_keys(made: Object, credentials: RoleCredentials) -> Object:
    """A container that uses the store, with the mounted Secret that ``credentials`` name, if they name one."""
    if credentials.secret_ref is None:
        return made
    mount = {"name": _STORE_KEYS, "mountPath": STORE_KEYS_FOLDER, "readOnly": True}
    variable = {"name": STORE_KEYS_VARIABLE, "value": STORE_KEYS_FOLDER}
    return {**made, "env": [*made["env"], variable], "volumeMounts": [*made["volumeMounts"], mount]}


def _store_keys_volumes(credentials: RoleCredentials) -> list[Object]:
    """The Secret that ``credentials`` name. A pod starts without it too, because serving does not need the store."""
    if credentials.secret_ref is None:
        return []
    items = [{"key": key, "path": key} for key in (ACCESS_KEY, SECRET_KEY)]
    name = credentials.secret_ref.name
    source = {"secretName": name, "defaultMode": 0o440, "items": items, "optional": True}
    return [{"name": _STORE_KEYS, "secret": source}]


def resources_of(spec: SpeculatorSpec) -> Object:
    """``resources`` of a container that computes, if the spec sets any."""
    given = spec.resources.model_dump(exclude_defaults=True)
    return {"resources": given} if given else {}


def gpus_of(spec: SpeculatorSpec, template: PodTemplate, name: str) -> dict[str, int]:
    """How many GPUs the container ``name`` gets, by the resource's name: ``{"nvidia.com/gpu": 2}``."""
    resources = mapping(merge(resources_of(spec), container_named(template.spec, name)).get("resources"))
    counts = {key: str(value) for key, value in mapping(resources.get("limits")).items() if str(key).endswith("/gpu")}
    return {key: int(count) for key, count in counts.items() if re.fullmatch(r"[1-9][0-9]{0,3}", count)}


def container(name: str, image: str, module: list[str], env: list[Object], **more: Any) -> Object:
    """A container that Pod Security's ``restricted`` profile admits, with a read-only root filesystem.

    ``module`` holds the arguments of ``python -m``. With ``-P`` Python never imports from the working directory, which
    a user's template may set to a folder that another container writes to.
    """
    return {
        "name": name,
        "image": image,
        "command": ["python", "-P", "-m", *module],
        "env": env,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        **more,
        "volumeMounts": [
            {"name": _tmp_volume(name), "mountPath": "/tmp"},  # noqa: S108 - the container's own emptyDir
            {"name": "state", "mountPath": STATE_FOLDER},
            *more.get("volumeMounts", []),
        ],
    }


def _tmp_volume(container_name: str) -> str:
    """The volume of a container's ``/tmp``. No two containers share one: Python may import from it."""
    return f"tmp-{container_name}" if container_name in _HELPERS else "tmp"


def pod_template(
    owner: Owner,
    spec: SpeculatorSpec,
    config: OperatorConfig,
    component: str,
    pod: Mapping[str, Any],
    *overrides: PodTemplate,
    **labels: str,
) -> Object:
    """Our pod template with the users' templates merged over it.

    Our own labels win over the users', because Services and selectors rely on them.
    """
    credentials = store_credentials(spec, component)
    merged = _base_pod(config, credentials.service_account_name or owner.name, pod)
    merged["volumes"] += _store_keys_volumes(credentials)
    merged = _with_model(merged, spec.target.source)
    metadata: dict[str, Any] = {"annotations": _autoscaling(component, merged)}
    for override in overrides:
        merged = merge(merged, override.spec)
        metadata = merge(metadata, override.metadata.model_dump(exclude_defaults=True))
    metadata["labels"] = metadata.get("labels", {}) | selector(owner, component) | COMMON_LABELS | labels
    return {"metadata": metadata, "spec": merged}


def _autoscaling(component: str, pod: Mapping[str, Any]) -> dict[str, str]:
    """What the cluster autoscaler may do for a pod.

    It may move a pod although it has volumes on the node's disk, because a pod that is replaced loses nothing there
    that it needs. A validator would lose its measurement. No node is bought for a validator, which comes with each
    candidate: its pod is given up before the delay is over (``plan.candidate``). ``validation.template`` may set less.
    """
    if component == VALIDATOR:
        return {"cluster-autoscaler.kubernetes.io/pod-scale-up-delay": "1h"}
    on_disk = [v["name"] for v in pod["volumes"] if "emptyDir" in v and "medium" not in v["emptyDir"]]
    return {"cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes": ",".join(on_disk)}


def with_template_labels(workload: Object) -> Object:
    """``workload``, a Deployment or Job, with the labels of its pods' template beside its own.

    A queue such as Kueue, and an admission policy, read the user's labels on the workload before any pod exists.
    """
    of_pods = workload["spec"]["template"].get("metadata", {}).get("labels", {})
    metadata = workload["metadata"]
    return {**workload, "metadata": {**metadata, "labels": of_pods | metadata["labels"]}}


def _base_pod(config: OperatorConfig, service_account: str, pod: Mapping[str, Any]) -> dict[str, Any]:
    """``pod`` with everything that is the same in all our pods."""
    containers = {
        kind: [{"imagePullPolicy": config.pull_policy, **item} for item in pod[kind]]
        for kind in ("initContainers", "containers")
        if kind in pod
    }
    names = [item["name"] for items in containers.values() for item in items]
    limits = {_tmp_volume(name): HELPER_TMP_LIMIT if name in _HELPERS else TMP_LIMIT for name in names}
    volumes = [{"name": name, "emptyDir": {"sizeLimit": limit}} for name, limit in limits.items()]
    secrets = {"imagePullSecrets": [{"name": name} for name in config.pull_secrets]} if config.pull_secrets else {}
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "serviceAccountName": service_account,
        "securityContext": {
            "runAsNonRoot": True,
            **(dict.fromkeys(("runAsUser", "runAsGroup", "fsGroup"), USER_ID) if config.fixed_user else {}),
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **pod,
        **containers,
        **secrets,
        "volumes": [*volumes, {"name": "state", "emptyDir": {"sizeLimit": STATE_LIMIT}}, *pod.get("volumes", [])],
    }


def _with_model(pod: dict[str, Any], source: ModelSource | None) -> dict[str, Any]:
    """``pod`` whose containers that read the target's files can get them from ``source``."""
    if source is None:
        return pod
    token = source.hugging_face.token_secret_ref if source.hugging_face else None
    added: dict[str, Any] = {"volumeMounts": [{"name": "model", "mountPath": MODEL_MOUNT, "readOnly": True}]}
    if token is not None:
        reference = {"secretKeyRef": {"name": token.name, "key": token.key}}
        added = {"env": [{"name": "HF_TOKEN", "valueFrom": reference}]}
    readers = {
        kind: [{"name": item["name"], **added} for item in pod.get(kind, ()) if item["name"] in _MODEL_READERS]
        for kind in ("initContainers", "containers")
    }
    volumes = [] if token else [{"name": "model", **_model_volume(source)}]
    return merge(pod, {kind: items for kind, items in readers.items() if items} | {"volumes": volumes})


def _model_volume(source: ModelSource) -> Object:
    if source.pvc is not None:
        return {"persistentVolumeClaim": {"claimName": source.pvc.claim_name, "readOnly": True}}
    assert source.image is not None, "a source has exactly one kind"
    return {"image": {"reference": source.image.reference}}


_MERGE_KEYS: dict[str, tuple[str, ...]] = {
    "containers": ("name",),
    "initContainers": ("name",),
    "volumes": ("name",),
    "resourceClaims": ("name",),
    "env": ("name",),
    "imagePullSecrets": ("name",),
    "volumeMounts": ("mountPath",),
    "volumeDevices": ("devicePath",),
    "ports": ("containerPort", "protocol"),
    "hostAliases": ("ip",),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
}
_REPLACED_ITEMS = frozenset({"volumes", "env", "resourceClaims"})
"""Fields whose items are unions: two kinds of volume, a ``value`` and a ``valueFrom``, or a claim and a claim's
template, cannot be merged."""


def _identity(item: Any, keys: tuple[str, ...]) -> Any:
    return tuple(item.get(key) for key in keys) if isinstance(item, Mapping) else item


def _merge_list(field: str, base: list[Any], override: list[Any]) -> list[Any]:
    keys = _MERGE_KEYS[field]
    out = {_identity(item, keys): item for item in base}
    for item in override:
        identity = _identity(item, keys)
        mergeable = identity in out and isinstance(item, Mapping) and field not in _REPLACED_ITEMS
        out[identity] = merge(out[identity], item) if mergeable else item
    return list(out.values())


def merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """``override`` merged over ``base``. Neither argument is changed."""
    out = dict(base)
    for key, value in override.items():
        if value is None:
            out.pop(key, None)
        elif isinstance(value, Mapping):
            below = out.get(key)
            out[key] = merge(below if isinstance(below, Mapping) else {}, value)
        elif isinstance(value, list) and key in _MERGE_KEYS:
            below = out.get(key)
            out[key] = _merge_list(key, below if isinstance(below, list) else [], value)
        else:
            out[key] = value
    return out


def mapping(value: Any) -> Mapping[str, Any]:
    """``value`` if it is an object, otherwise an empty object."""
    return value if isinstance(value, Mapping) else {}


def container_named(pod: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The container ``name`` of a pod, or of a user's partial pod; empty when there is none."""
    listed = pod.get("containers")
    containers = [mapping(item) for item in listed] if isinstance(listed, list) else []
    return next((item for item in containers if item.get("name") == name), {})
