"""Adds and removes the finalizer that keeps a speculator until its objects in the store are deleted.

Invariants: only our own finalizer is written, and only over the version of the custom resource that was observed. A
write that leaves the finalizer as it was counts as refused, although the API server accepted it.

Why it is removed by a merge patch: server-side apply removes only what the same field manager applied. In a resource
that somebody created from a dump or a backup, the finalizer belongs to kubectl or Velero.
"""

from __future__ import annotations

from http import HTTPStatus

from aurora_api import API_VERSION, KIND
from aurora_operator.children.metadata import FINALIZER, has_finalizer
from aurora_operator.children.owner import Owner
from aurora_operator.errors import Conflict, KubernetesError
from aurora_operator.kubernetes_api import SPECULATOR, KubernetesApi, Object


def set_finalizer(api: KubernetesApi, owner: Owner, *, wanted: bool) -> None:
    """Add or remove our finalizer. Blocks.

    The API server deletes a resource that is being deleted once its last finalizer is removed. Raises
    :class:`Conflict` when the resource changed since ``owner`` was read, :class:`KubernetesError`.
    """
    answer = _add(api, owner) if wanted else _remove(api, owner)
    if has_finalizer(answer) is not wanted:
        effect = "does not have" if wanted else "still has"
        raise KubernetesError(
            f"the API server accepted the write, but the resource {effect} the finalizer {FINALIZER}. Find the"
            " admission webhook that changes finalizers",
            HTTPStatus.UNPROCESSABLE_ENTITY,
        )


def _add(api: KubernetesApi, owner: Owner) -> Object:
    """Server-side apply adds our finalizer to those of others."""
    metadata: Object = {
        "name": owner.name,
        "namespace": owner.namespace,
        "uid": owner.uid,
        "resourceVersion": owner.resource_version,
        "finalizers": [FINALIZER],
    }
    return api.apply({"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata})


def _remove(api: KubernetesApi, owner: Owner) -> Object:
    """Replace the list by the finalizers of others."""
    stored = api.get(SPECULATOR, owner.namespace, owner.name)
    metadata = stored["metadata"]
    if (metadata["uid"], metadata["resourceVersion"]) != (owner.uid, owner.resource_version):
        raise Conflict(f"{owner.full_name} changed since it was read", HTTPStatus.CONFLICT)
    others = [finalizer for finalizer in metadata.get("finalizers") or () if finalizer != FINALIZER]
    return api.set_finalizers({"kind": KIND, **stored}, others)
