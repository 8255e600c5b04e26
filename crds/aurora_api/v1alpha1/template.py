"""Pod templates, and how CEL rules are attached to a model."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, WithJsonSchema

from aurora_api.base import Model


def rules(*pairs: tuple[str, str], **extra: Any) -> dict[str, Any]:
    """JSON-schema extras carrying CEL rules as ``(rule, message)``."""
    return {"x-kubernetes-validations": [{"rule": rule, "message": message} for rule, message in pairs], **extra}


OpenObject = Annotated[dict[str, Any], WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True})]
"""An object whose schema belongs to Kubernetes: checked by the API server when the child is applied."""


class TemplateMetadata(Model):
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)


class PodTemplate(Model):
    """A partial pod template merged over the operator's own: lists of named things merge by name (strategic merge)."""

    metadata: TemplateMetadata = Field(default_factory=TemplateMetadata)
    spec: OpenObject = Field(
        default_factory=dict, description="Partial PodSpec: resources, nodeSelector, volumes, env…"
    )
