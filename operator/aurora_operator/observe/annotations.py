"""Reads the annotations with which people decide: ``kubectl annotate aspec chat aurora.dev/abort=3``."""

from __future__ import annotations

from aurora_api.v1alpha1.annotations import (
    ABORT_ANNOTATION,
    MEASURE_ANNOTATION,
    annotated_pair,
    annotated_version,
)
from aurora_operator.kubernetes_api import Object
from aurora_operator.observe.observed import UserRequests


def user_requests(speculator: Object) -> UserRequests:
    """The requests in a speculator's annotations. A value that names no version is ignored."""
    annotations = speculator["metadata"].get("annotations") or {}
    return UserRequests(
        abort=annotated_version(annotations.get(ABORT_ANNOTATION, "")),
        measure=annotated_pair(annotations.get(MEASURE_ANNOTATION, "")),
    )
