"""Parses a stored AuroraSpeculator into typed values."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from aurora_api.v1alpha1.annotations import ABORT_ANNOTATION, ADOPT_ANNOTATION, annotated_version
from aurora_api.v1alpha1.conditions import ConditionStatus, ConditionType
from aurora_api.v1alpha1.spec import SpeculatorSpec
from aurora_api.v1alpha1.status import RolloutPhase, SpeculatorStatus
from aurora_operator.children.metadata import Owner
from aurora_operator.errors import InvalidSpec
from aurora_operator.kubernetes_api import Object

_NORMAL = {
    kind: ConditionStatus.FALSE if kind in (ConditionType.RECONCILING, ConditionType.STALLED) else ConditionStatus.TRUE
    for kind in ConditionType
}
"""The conditions of a speculator at rest."""


def parse(stored: Object) -> tuple[Owner, SpeculatorSpec, SpeculatorStatus, str]:
    """The parts of a stored custom resource, and the fault of its spec; empty when the spec has none.

    A wrong field has its default in the returned spec, which is good enough to roll back and must not shape children.
    Store and target are as they are stored. Raises :class:`InvalidSpec` when one of these is wrong.
    """
    owner, status = owner_of(stored), status_of(stored)
    try:
        return owner, SpeculatorSpec.model_validate(stored["spec"]), status, ""
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False)]
        fault, usable = f"spec: {'; '.join(faults)}", _without_faults(stored["spec"], error)
    if usable is None:
        raise InvalidSpec(owner, status, fault)
    return owner, usable, status, fault


def owner_of(stored: Object) -> Owner:
    """The identity of a stored custom resource."""
    metadata = stored["metadata"]
    return Owner(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        generation=metadata["generation"],
        resource_version=metadata["resourceVersion"],
        adopts=(metadata.get("annotations") or {}).get(ADOPT_ANNOTATION) == "true",
    )


def _without_faults(stored_spec: Mapping[str, Any], error: ValidationError) -> SpeculatorSpec | None:
    """The spec without the wrong fields, which then have their defaults; None when that is not enough.

    A wrong target or store has no substitute: another store would get this one's credentials.
    """
    wrong = [details["loc"] for details in error.errors()]
    if any(not path or path[0] in ("target", "store") for path in wrong):
        return None
    rest = copy.deepcopy(dict(stored_spec))
    for path in wrong:
        _remove(rest, path)
    try:
        return SpeculatorSpec.model_validate(rest)
    except ValidationError:
        return None


def _remove(node: dict[str, Any], path: tuple[int | str, ...]) -> None:
    """Remove the field at ``path``. A wrong item of a list removes the whole list."""
    name, below = str(path[0]), path[1:]
    child = node.get(name)
    if below and isinstance(child, dict) and below[0] in child:
        _remove(child, below)
    else:
        node.pop(name, None)


def status_of(stored: Object) -> SpeculatorStatus:
    """The stored status without the parts that do not parse, because another version of the operator wrote them.

    A missing part counts as empty: the store and the pods rebuild it. Conditions of other controllers are left out.
    """
    parts = dict(stored.get("status") or {})
    if isinstance(parts.get("conditions"), list):
        parts["conditions"] = [c for c in parts["conditions"] if c.get("type") in list(ConditionType)]
    try:
        return SpeculatorStatus.model_validate(parts)
    except ValidationError as error:
        wrong = {details["loc"][0] for details in error.errors()}
        return SpeculatorStatus.model_validate({name: part for name, part in parts.items() if name not in wrong})


def seems_at_rest(stored: Object) -> bool:
    """Whether the operator had seen this spec, nothing was wrong with it or its pods, and nothing was rolled out."""
    metadata, status = stored["metadata"], status_of(stored)
    seen = "deletionTimestamp" not in metadata and status.observed_generation == metadata["generation"]
    normal = {c.type: c.status for c in status.conditions} == _NORMAL
    return seen and normal and status.rollout.phase is RolloutPhase.IDLE


def aborted_version(stored: Object) -> int | None:
    """The version that a person rejects: ``aurora.dev/abort=3``. A value that names no version is ignored."""
    return annotated_version((stored["metadata"].get("annotations") or {}).get(ABORT_ANNOTATION, ""))
