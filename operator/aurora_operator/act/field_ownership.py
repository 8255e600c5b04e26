"""Makes server-side apply own the fields that creating an object has set.

The API server keeps two records of what one field manager set: one for create calls and updates, one for applies. A
field that a later apply leaves out is deleted only if no other record names it. A created object would therefore keep
each field of its creation for ever. Once the apply's record owns these fields too, an apply can remove them.

kubectl and client-go move them in the same way (``k8s.io/client-go/util/csaupgrade``). Pure.

Invariant: only records of our own field manager change, and subresources' records never do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aurora_operator.kubernetes_api import Object
from aurora_operator.operator_config import OPERATOR_NAME


def applied_managed_fields(managed_fields: Sequence[Object]) -> list[Object] | None:
    """``metadata.managedFields`` in which our apply owns the fields of our create call. None: nothing is to change."""
    created = _own_record(managed_fields, "Update")
    if created is None:
        return None
    applied = _own_record(managed_fields, "Apply") or created
    fields = _union(created["fieldsV1"], applied["fieldsV1"])
    others = [record for record in managed_fields if record is not created and record is not applied]
    return [*others, {**applied, "operation": "Apply", "fieldsV1": fields}]


def _own_record(managed_fields: Sequence[Object], operation: str) -> Object | None:
    for record in managed_fields:
        own = (record.get("manager"), record.get("operation")) == (OPERATOR_NAME, operation)
        if own and not record.get("subresource"):
            return record
    return None


def _union(left: Mapping[str, Any], right: Mapping[str, Any]) -> dict[str, Any]:
    """All fields of two trees in the format ``FieldsV1``."""
    both = {key: _union(left[key], right[key]) for key in left.keys() & right.keys()}
    return {**left, **right, **both}
