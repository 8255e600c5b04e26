"""Tells whether a child is as we last wrote it, so that a restarted operator does not write every child again. Pure.

A writer that has just started remembers no write of its own. Each child therefore carries a digest of the object that
we wrote.

Invariant: a child counts as unchanged only if we wrote exactly this object last, and every field of it still has the
value that we wrote. A value that the API server spells in another way looks like a change, and is written once more.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from aurora_operator.kubernetes_api import Object

DIGEST_ANNOTATION = "aurora.dev/written"
"""Annotation of a child: the digest of the object that we wrote."""


def with_digest(child: Object) -> Object:
    """``child`` with the digest of its content."""
    digest = hashlib.sha256(json.dumps(child, sort_keys=True).encode()).hexdigest()[:16]
    annotations = {**(child["metadata"].get("annotations") or {}), DIGEST_ANNOTATION: digest}
    return {**child, "metadata": {**child["metadata"], "annotations": annotations}}


def is_unchanged(child: Object, live: Object) -> bool:
    """Whether ``live`` is what the API server made of ``child``, which has its digest.

    The digest shows that we left out no field that we wrote before. The fields show that nobody changed a value.
    """
    return _contains(live, child)


def _contains(live: Any, wanted: Any) -> bool:
    """Whether ``live`` has every field of ``wanted``. The API server adds defaults to objects, and none to lists."""
    if isinstance(wanted, dict):
        return isinstance(live, dict) and all(key in live and _contains(live[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list):
        same_length = isinstance(live, list) and len(live) == len(wanted)
        return same_length and all(map(_contains, live, wanted))
    return bool(live == wanted)
