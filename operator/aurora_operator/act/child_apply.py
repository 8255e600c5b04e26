"""Applies a child over exactly the object that was observed.

Every apply names the uid and the resourceVersion of that object. So the API server refuses it when

- it arrives late, after the next leader has written the child,
- the name belongs to another object by then, or
- somebody took our owner reference away since: a forced apply would put it back, and so adopt the object.

A status alone also changes the resourceVersion. Then the write is tried again over the newer object, after a new check
that this process leads. When somebody changed the specification, the speculator is observed again instead.
"""

from __future__ import annotations

from typing import Any, Final

from aurora_operator.act.field_ownership import applied_managed_fields
from aurora_operator.act.refused_writes import NameTakenError
from aurora_operator.children.owner import Owner
from aurora_operator.errors import UNAVAILABLE_STATUSES, Conflict, KubernetesError, NotFound
from aurora_operator.io_pools import call_api
from aurora_operator.kubernetes_api import KubernetesApi, Object, resource_of

MAX_ATTEMPTS: Final = 5
"""After so many failed attempts to write one child, the last error is raised. During a roll a Deployment's status
changes every few moments, and each change makes a write fail."""


async def apply_over(api: KubernetesApi, owner: Owner, child: Object, existing: Object) -> Object:
    """Apply ``child`` to the object ``existing``, which must be ours.

    Raises :class:`NameTakenError` when the object is not ours any more, :class:`Conflict` when it does not exist any
    more or its specification changed since it was read, and :class:`KubernetesError` when the API server refuses.
    """
    applied = adopted = False
    attempts = 0
    while True:
        try:
            if not applied:
                existing = await call_api(api.apply, _over(child, existing))
                applied = True
            managed_fields = applied_managed_fields(existing["metadata"].get("managedFields") or ())
            if managed_fields is None or adopted:
                return existing
            # The first apply after a create call could not remove fields that ``child`` does not have any more, and the
            # next one can. See field_ownership.
            existing = await call_api(api.set_managed_fields, existing, managed_fields)
            applied, adopted = False, True
        except KubernetesError as error:
            existing = await _with_newer_status(api, owner, child, existing, error)
            attempts += 1
            if attempts == MAX_ATTEMPTS:
                raise


async def find(api: KubernetesApi, child: Object) -> Object | None:
    """The object that has the child's name now."""
    metadata = child["metadata"]
    try:
        return await call_api(api.get, resource_of(child), metadata["namespace"], metadata["name"])
    except NotFound:
        return None


def refused(conflict: Conflict) -> KubernetesError:
    """``conflict`` as a refusal: no other writer explains it, so observing again would not help."""
    return KubernetesError(str(conflict), conflict.status)


def title(obj: Object) -> str:
    """``<Kind> <name>``, as the status names an object."""
    return f"{obj['kind']} {obj['metadata']['name']}"


def revision_of_spec(obj: Object, child: Object) -> Any:
    """A value that changes when somebody changes the spec of ``obj``, or a label that ``child`` gave it.

    For kinds without a generation the value changes with every field, because it has the resourceVersion. Other kinds
    change their resourceVersion with each status.
    """
    metadata = obj["metadata"]
    labels = metadata.get("labels") or {}
    ours = tuple(labels.get(label) for label in sorted(child["metadata"].get("labels") or {}))
    return metadata["uid"], metadata.get("generation") or metadata["resourceVersion"], ours


def _over(child: Object, existing: Object) -> Object:
    fence = {key: existing["metadata"][key] for key in ("uid", "resourceVersion")}
    return {**child, "metadata": {**child["metadata"], **fence}}


async def _with_newer_status(
    api: KubernetesApi, owner: Owner, child: Object, existing: Object, error: KubernetesError
) -> Object:
    """The stored object to write over next, if only its status changed since ``existing``.

    Raises the error that says what happened otherwise. The API server refuses another uid as a conflict, or for some
    kinds as a change of an immutable field.
    """
    if error.status in UNAVAILABLE_STATUSES:
        raise error
    found = await find(api, child)
    if found is not None and not owner.owns(found):
        raise NameTakenError from None
    if found is None or found["metadata"]["uid"] != existing["metadata"]["uid"]:
        raise Conflict(f"{title(child)} was replaced while it was written", 409) from error
    if not isinstance(error, Conflict):
        raise error
    if found["metadata"]["resourceVersion"] == existing["metadata"]["resourceVersion"]:
        raise refused(error) from error
    if revision_of_spec(found, child) != revision_of_spec(existing, child):
        raise error
    return found
