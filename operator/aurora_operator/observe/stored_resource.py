"""Parses a stored AuroraSpeculator into typed values."""

from __future__ import annotations

from pydantic import ValidationError

from aurora_api.v1alpha1.spec import SpeculatorSpec
from aurora_api.v1alpha1.status import SpeculatorStatus
from aurora_operator.children.owner import Owner
from aurora_operator.errors import InvalidSpec
from aurora_operator.kubernetes_api import Object
from aurora_protocol.sglang_flags import unknown_flags


def parse(stored: Object) -> tuple[Owner, SpeculatorSpec, SpeculatorStatus]:
    """The parts of a stored custom resource. Raises :class:`InvalidSpec`."""
    owner, status = owner_of(stored), _status(stored)
    try:
        spec = SpeculatorSpec.model_validate(stored["spec"])
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False)]
        raise InvalidSpec(owner, status, f"spec: {'; '.join(faults)}") from None
    # The list holds the flags of the SGLang in our own image. A user's image may hold another SGLang: no check there.
    if spec.serving.image is None and (unknown := unknown_flags(spec.serving.extra_args)):
        text = f"spec.serving.extraArgs: SGLang has no flag {', '.join(unknown)}; correct or remove it"
        raise InvalidSpec(owner, status, text)
    return owner, spec, status


def owner_of(stored: Object) -> Owner:
    """The identity of a stored custom resource."""
    metadata = stored["metadata"]
    return Owner(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        generation=metadata["generation"],
        resource_version=metadata["resourceVersion"],
    )


def _status(stored: Object) -> SpeculatorStatus:
    """A status that does not parse (an older operator's) counts as empty: the store and the pods rebuild it."""
    try:
        return SpeculatorStatus.model_validate(stored.get("status") or {})
    except ValidationError:
        return SpeculatorStatus()
