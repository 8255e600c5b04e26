"""Writes the custom resource itself: its status, the name of the installation that acts, and our finalizer.

Invariant: each write replaces only the version of the resource that was observed. When two operators write, or an
operator and a user, the second write fails, and that operator observes again.
"""

from __future__ import annotations

from aurora_api import API_VERSION, KIND
from aurora_api.v1alpha1.status import OperatorIdentity, SpeculatorStatus
from aurora_operator.children.metadata import FINALIZER, Owner, has_finalizer
from aurora_operator.errors import KubernetesError
from aurora_operator.kubernetes_api import KubernetesApi, Object


async def write_status(api: KubernetesApi, owner: Owner, status: SpeculatorStatus) -> None:
    """Raises :class:`Conflict` when the resource changed since ``owner`` was read, :class:`KubernetesError`."""
    body = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {
            "name": owner.name,
            "namespace": owner.namespace,
            "uid": owner.uid,
            "resourceVersion": owner.resource_version,
        },
        "status": status.model_dump(mode="json", by_alias=True, exclude_none=True),
    }
    await api.apply(body, subresource="status")


async def claim(api: KubernetesApi, stored: Object, installation: OperatorIdentity) -> Object:
    """Write into the status of ``stored`` that this installation acts. Returns the resource as it is stored then.

    Raises :class:`Conflict` when the resource changed since it was read, :class:`KubernetesError`.
    """
    named = installation.model_dump(mode="json", by_alias=True)
    written = await api.patch(stored, {"status": {"operator": named}}, subresource="status")
    return {"apiVersion": API_VERSION, "kind": KIND, **written}


async def set_finalizer(api: KubernetesApi, stored: Object, *, wanted: bool) -> Object:
    """Add or remove our finalizer, and leave those of others. Returns the resource as it is stored then.

    The API server deletes a resource that is being deleted once its last finalizer is removed. Raises
    :class:`Conflict` when the resource changed since it was read, :class:`KubernetesError`.
    """
    if has_finalizer(stored) is wanted:
        return stored
    others = [finalizer for finalizer in stored["metadata"].get("finalizers") or () if finalizer != FINALIZER]
    finalizers = [*others, FINALIZER] if wanted else others
    written = await api.patch(stored, {"metadata": {"finalizers": finalizers}})
    if has_finalizer(written) is not wanted:
        raise KubernetesError(f"an admission webhook changed the finalizer {FINALIZER}; find it")
    return {"apiVersion": API_VERSION, "kind": KIND, **written}
