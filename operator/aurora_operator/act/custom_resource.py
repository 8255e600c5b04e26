"""Writes the custom resource itself: its status, the name of the installation that acts, and our finalizer.

Invariant: each write replaces only the version of the resource that was observed. When two operators write, or an
operator and a user, the second write fails, and that operator observes again.
"""

from __future__ import annotations

from http import HTTPStatus

from aurora_api import API_VERSION, KIND
from aurora_api.v1alpha1.status import OperatorIdentity, SpeculatorStatus
from aurora_operator.children.metadata import FINALIZER, has_finalizer
from aurora_operator.children.owner import Owner
from aurora_operator.errors import Conflict, KubernetesError
from aurora_operator.kubernetes_api import SPECULATOR, KubernetesApi, Object


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


async def set_finalizer(api: KubernetesApi, owner: Owner, *, wanted: bool) -> None:
    """Add or remove our finalizer, and leave those of others.

    The API server deletes a resource that is being deleted once its last finalizer is removed. Raises
    :class:`Conflict` when the resource changed since ``owner`` was read, :class:`KubernetesError`.
    """
    stored = {"kind": KIND, **await api.get(SPECULATOR, owner.namespace, owner.name)}
    metadata = stored["metadata"]
    if (metadata["uid"], metadata["resourceVersion"]) != (owner.uid, owner.resource_version):
        raise Conflict(f"{owner.full_name} changed since it was read", HTTPStatus.CONFLICT)
    others = [finalizer for finalizer in metadata.get("finalizers") or () if finalizer != FINALIZER]
    finalizers = [*others, FINALIZER] if wanted else others
    answer = await api.patch(stored, {"metadata": {"finalizers": finalizers}})
    if has_finalizer(answer) is not wanted:
        effect = "does not have" if wanted else "still has"
        raise KubernetesError(
            f"the API server accepted the write, but the resource {effect} the finalizer {FINALIZER}. Find the"
            " admission webhook that changes finalizers",
            HTTPStatus.UNPROCESSABLE_ENTITY,
        )
