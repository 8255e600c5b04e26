"""Keeps the inference pods' template, with the spec that it was made from, in annotations of the Deployment.

Why: a template follows from the spec and from the operator's own images and code. An upgraded operator would restart
every inference pod of the fleet at once. With the former template at hand, the operator can keep the pods until it is
the speculator's turn (``plan.upgrade``). With the former spec at hand, it can tell a change by the user from
its own.

Why annotations of the Deployment: one write changes the template and what is kept about it, one read returns both, and
Kubernetes deletes both together. A ControllerRevision would need another object, another read and more permissions.

Invariants: the annotation stays far below Kubernetes' limit for all annotations of an object, 256 KiB. A template that
does not fit is not kept, so its pods follow the operator at once. Pure.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from aurora_api.v1alpha1.spec import SpeculatorSpec
from aurora_operator.children.inference_deployment import serving_settings
from aurora_operator.children.metadata import INFERENCE
from aurora_operator.children.owner import Owner
from aurora_operator.children.pod_template import store_credentials
from aurora_operator.kubernetes_api import Object

TEMPLATE_ANNOTATION: Final = "aurora.dev/applied-template"
"""Base64 of compressed JSON: the template, and the part of the spec that it was made from."""
RESTART_ANNOTATION: Final = "aurora.dev/upgrade-restart"
""""true" from the restart because of an upgrade of the operator until all pods are ready again."""
RESTART_SINCE_ANNOTATION: Final = "aurora.dev/upgrade-restart-since"
"""When that restart began. An operator of an earlier version leaves the annotation out."""
MAX_ANNOTATION_BYTES: Final = 128 * 1024
MAX_TEMPLATE_BYTES: Final = 2 * 1024 * 1024
"""Limit of the JSON that the annotation decodes to. The API server stores no larger object."""


@dataclass(frozen=True)
class TemplateInputs:
    """The part of a spec that shapes the inference pods' template."""

    every: Mapping[str, Any]
    """All fields, with their defaults."""
    chosen: Mapping[str, Any]
    """Only the fields that differ from their defaults."""

    def differ_from(self, kept: Mapping[str, Any]) -> bool:
        """Whether a user changed a field since ``kept``, the former :attr:`every`, was made.

        A field that another version of the operator added or removed is no change while it has its default. Nor is
        another default, because the stored spec keeps the value that the API server filled in.
        """
        return _differ(kept, self.every, self.chosen)


@dataclass(frozen=True)
class AppliedTemplate:
    """The template that the operator applied last."""

    template: Object
    inputs: Mapping[str, Any]
    """:attr:`TemplateInputs.every` of the spec that the template was made from."""
    restarting: bool = False
    """The pods restart because of an upgrade of the operator, and were not all ready since."""
    restarting_since: datetime | None = None
    """When the restart with this template began. None: the pods do not restart, or the time is not known."""

    def annotations(self) -> dict[str, str] | None:
        """The annotations of the Deployment; None when the template is too large to keep."""
        data = json.dumps({"template": self.template, "inputs": self.inputs}, sort_keys=True, separators=(",", ":"))
        text = base64.b64encode(zlib.compress(data.encode(), 9)).decode()
        if len(text) > MAX_ANNOTATION_BYTES or len(data) > MAX_TEMPLATE_BYTES:
            return None
        return {TEMPLATE_ANNOTATION: text} | self._restart_annotations()

    def _restart_annotations(self) -> dict[str, str]:
        if not self.restarting:
            return {}
        since = self.restarting_since
        return {RESTART_ANNOTATION: "true"} | ({RESTART_SINCE_ANNOTATION: since.isoformat()} if since else {})


def template_inputs(owner: Owner, spec: SpeculatorSpec) -> TemplateInputs:
    """The part of ``spec`` that shapes the inference pods' template."""
    settings, serving = serving_settings(owner, spec), spec.serving
    fixed = {
        "image": serving.image,
        "credentials": store_credentials(spec, INFERENCE).model_dump(mode="json", by_alias=True, exclude_none=True),
        "template": serving.template.model_dump(mode="json", by_alias=True, exclude_defaults=True),
    }
    return TemplateInputs(
        every=fixed | {"settings": settings.model_dump(mode="json", by_alias=True)},
        chosen=fixed | {"settings": settings.model_dump(mode="json", by_alias=True, exclude_defaults=True)},
    )


def read_applied_template(deployment: Object) -> AppliedTemplate | None:
    """The template that ``deployment`` keeps; None when it keeps none that can be read."""
    annotations = deployment["metadata"].get("annotations") or {}
    try:
        packed = base64.b64decode(annotations.get(TEMPLATE_ANNOTATION, ""), validate=True)
        kept = json.loads(zlib.decompressobj().decompress(packed, MAX_TEMPLATE_BYTES))
        return AppliedTemplate(
            template=dict(kept["template"]),
            inputs=dict(kept["inputs"]),
            restarting=annotations.get(RESTART_ANNOTATION) == "true",
            restarting_since=_time(annotations.get(RESTART_SINCE_ANNOTATION, "")),
        )
    except (binascii.Error, zlib.error, ValueError, TypeError, KeyError):
        return None


def _time(text: str) -> datetime | None:
    """The time that ``text`` names; None when it names none, or none with a zone."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return time if time.tzinfo is not None else None


def _differ(kept: Mapping[str, Any], every: Mapping[str, Any], chosen: Mapping[str, Any]) -> bool:
    for name, value in every.items():
        former = kept.get(name)
        if name not in kept:
            if name in chosen:
                return True
        elif name != "template" and isinstance(value, Mapping) and isinstance(former, Mapping):
            below = chosen.get(name)
            if _differ(former, value, below if isinstance(below, Mapping) else {}):
                return True
        elif value != former:
            return True
    return False
