"""Keeps what another version of the operator wrote into the status. Pure.

Why: during an upgrade, and after a rollback of one, an older operator rewrites a status that a newer one built.

Invariant: a field or a condition that this version does not know survives a rewrite, as long as its part of the status
is about the same thing: the same version, the same pod, the same type of condition.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter
from typing import TypeVar

from aurora_api.base import Model, with_unknown_fields
from aurora_api.v1alpha1.conditions import Condition, ConditionType
from aurora_api.v1alpha1.status import SpeculatorStatus

P = TypeVar("P", bound=Model)


def with_kept_fields(new: SpeculatorStatus, old: SpeculatorStatus) -> SpeculatorStatus:
    """``new`` with the unknown fields and the unknown conditions of ``old``."""
    update = {
        "active": _kept(new.active, old.active, "version"),
        "previous": _kept(new.previous, old.previous, "version"),
        "candidate": _kept(new.candidate, old.candidate, "version"),
        "rollout": _kept(new.rollout, old.rollout, "version"),
        "start": _kept(new.start, old.start, "since"),
        "training": with_unknown_fields(new.training, old.training),
        "pods": _kept_in_list(new.pods, old.pods, "name"),
        "conditions": [*_kept_in_list(new.conditions, old.conditions, "type"), *_foreign(old.conditions)],
    }
    return with_unknown_fields(new.model_copy(update=update), old)


def _kept(new: P | None, old: Model | None, identity: str) -> P | None:
    if new is None or old is None or getattr(new, identity) != getattr(old, identity):
        return new
    return with_unknown_fields(new, old)


def _kept_in_list(new: Iterable[P], old: Iterable[P], *identity: str) -> list[P]:
    identity_of = attrgetter(*identity)
    before = {identity_of(part): part for part in old}
    return [with_unknown_fields(part, before.get(identity_of(part))) for part in new]


def _foreign(conditions: Iterable[Condition]) -> list[Condition]:
    """The conditions of a type that this version does not know."""
    return [condition for condition in conditions if not isinstance(condition.type, ConditionType)]
