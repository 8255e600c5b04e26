"""Writes the status of a custom resource.

Invariant: a status replaces only the version of the custom resource that it was computed from.
"""

from __future__ import annotations

from aurora_api import API_VERSION, KIND
from aurora_api.v1alpha1.status import SpeculatorStatus
from aurora_operator.children.owner import Owner
from aurora_operator.kubernetes_api import KubernetesApi


def write_status(api: KubernetesApi, owner: Owner, status: SpeculatorStatus) -> None:
    """Blocks. Raises :class:`Conflict` when the resource changed since ``owner`` was read, :class:`KubernetesError`."""
    api.apply(
        {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {
                "name": owner.name,
                "namespace": owner.namespace,
                "uid": owner.uid,
                "resourceVersion": owner.resource_version,
            },
            "status": status.model_dump(mode="json", by_alias=True, exclude_none=True),
        },
        subresource="status",
    )
