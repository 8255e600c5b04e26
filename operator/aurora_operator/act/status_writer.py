"""Writes the status of a custom resource.

Invariants: a status replaces only the version of the custom resource that it was computed from. ``operatorChallenge``
is written by :func:`patch_status` alone, so that one write removes it whoever wrote it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aurora_api import API_VERSION, KIND
from aurora_api.v1alpha1.status import SpeculatorStatus
from aurora_operator.children.owner import Owner
from aurora_operator.kubernetes_api import KubernetesApi, Object


def stored_form(status: SpeculatorStatus) -> Object:
    """``status`` as :func:`write_status` writes it."""
    return status.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"operator_challenge"})


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
            "status": stored_form(status),
        },
        subresource="status",
    )


def patch_status(api: KubernetesApi, owner: Owner, changes: Mapping[str, Any]) -> Object:
    """Set some fields of the status, or remove those that are None. Blocks. Returns the resource as it is stored.

    It does not touch the other fields, which another version of the operator may have written.

    Raises :class:`Conflict` when the resource changed since ``owner`` was read, :class:`KubernetesError`.
    """
    metadata = {"name": owner.name, "namespace": owner.namespace, "resourceVersion": owner.resource_version}
    return api.merge_status({"kind": KIND, "metadata": metadata}, changes)
