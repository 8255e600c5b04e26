"""Adds and removes the finalizer that keeps a speculator until its objects in the store are deleted.

Invariant: only our own finalizer is written, and only over the version of the custom resource that was observed.
"""

from __future__ import annotations

from aurora_api import API_VERSION, KIND
from aurora_operator.children.metadata import FINALIZER
from aurora_operator.children.owner import Owner
from aurora_operator.kubernetes_api import KubernetesApi, Object


def set_finalizer(api: KubernetesApi, owner: Owner, *, wanted: bool) -> None:
    """Add or remove our finalizer. Blocks.

    The API server deletes a resource that is being deleted once its last finalizer is removed. Raises
    :class:`Conflict` when the resource changed since ``owner`` was read, :class:`KubernetesError`.
    """
    metadata: Object = {
        "name": owner.name,
        "namespace": owner.namespace,
        "uid": owner.uid,
        "resourceVersion": owner.resource_version,
    }
    if wanted:
        metadata["finalizers"] = [FINALIZER]
    # Server-side apply removes a finalizer that we applied before and leave out now. Others' finalizers stay.
    api.apply({"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata})
