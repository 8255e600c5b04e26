"""A change of one speculator: the merge patch, and what it means in words. Pure.

Invariants: a patch carries the resourceVersion that it was decided on. A change without a patch changes nothing, and
says why nothing is to be changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from aurora_cli.speculator import Speculator

_ONE_OFF: Final = frozenset({"kubectl-aurora", "kubectl-create", "kubectl-edit", "kubectl-patch", "kubectl-replace"})
"""Managers that stand for one change by a person, who does not repeat it."""


@dataclass(frozen=True)
class FieldChange:
    """One field or annotation that gets another value. None: unset."""

    field: str
    """As a person writes it: ``spec.rollout.pin``, ``aurora.dev/promote``."""
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.field}: {_text(self.before)} -> {_text(self.after)}"


@dataclass(frozen=True)
class Change:
    """The fields that a decision changes, and the effect of the change."""

    fields: Sequence[FieldChange]
    effect: str
    """One sentence: what the operator does now. Without ``fields``: why nothing is to be changed."""
    notes: Sequence[str] = ()
    """Further facts for the person, such as a pause that delays the effect."""

    def patch(self, speculator: Speculator) -> dict[str, Any]:
        """The JSON merge patch (RFC 7386), which the API server refuses if the object changed since it was read."""
        metadata: dict[str, Any] = {"resourceVersion": speculator.metadata.get("resourceVersion")}
        spec: dict[str, Any] = {}
        for change in self.fields:
            if change.field.startswith("spec."):
                _set(spec, change.field.removeprefix("spec.").split("."), change.after)
            else:
                metadata.setdefault("annotations", {})[change.field] = change.after
        return {"metadata": metadata} | ({"spec": spec} if spec else {})


def decided(speculator: Speculator) -> Mapping[str, Any]:
    """All that people decided about the speculator's versions. A newer decision changes one of these values.

    The status, which the operator writes every few seconds, is not part of it.
    """
    return {
        "metadata.uid": speculator.uid,
        "spec.rollout.paused": speculator.paused,
        "spec.rollout.pin": speculator.pin,
        **{key: value for key, value in speculator.annotations.items() if key.startswith("aurora.dev/")},
    }


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Sequence[FieldChange]:
    """The values of :func:`decided` that changed."""
    keys = dict.fromkeys((*before, *after))
    return [FieldChange(key, before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)]


def other_managers(speculator: Speculator, changes: Sequence[FieldChange]) -> Sequence[str]:
    """The other managers that set the changed fields of the spec and may set them back, such as a GitOps controller.

    Argo CD and ``kubectl apply`` update objects by default, instead of applying them on the server.
    """
    paths = [change.field.split(".") for change in changes if change.field.startswith("spec.")]
    entries = speculator.metadata.get("managedFields") or ()
    found = {
        str(entry.get("manager"))
        for entry in entries
        if entry.get("manager") not in _ONE_OFF and any(_owns(entry.get("fieldsV1") or {}, path) for path in paths)
    }
    return sorted(found)


def _owns(fields: Mapping[str, Any], path: Sequence[str]) -> bool:
    for part in path:
        if f"f:{part}" not in fields:
            return False
        fields = fields[f"f:{part}"]
    return True


def _set(target: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for part in path[:-1]:
        target = target.setdefault(part, {})
    target[path[-1]] = value


def _text(value: Any) -> str:
    if value is None:
        return "unset"
    return str(value).lower() if isinstance(value, bool) else str(value)
