"""The annotations that promote or abort a version: ``kubectl annotate aspec chat aurora.dev/abort=3``."""

from __future__ import annotations

from aurora_api import GROUP
from aurora_operator.kubernetes_api import Object
from aurora_operator.observe.observed import UserRequests

MAX_VERSION_DIGITS = 8
"""The store's keys hold a version in eight digits. Python refuses to convert a text of more than 4,300 digits."""
PROMOTE_ANNOTATION, ABORT_ANNOTATION = f"{GROUP}/promote", f"{GROUP}/abort"


def user_requests(speculator: Object) -> UserRequests:
    """The requests in a speculator's annotations. A value that is not a version number is ignored."""
    annotations = speculator["metadata"].get("annotations") or {}

    def version(key: str) -> int | None:
        text = annotations.get(key, "")
        return int(text) if text.isdecimal() and len(text) <= MAX_VERSION_DIGITS else None

    return UserRequests(promote=version(PROMOTE_ANNOTATION), abort=version(ABORT_ANNOTATION))
