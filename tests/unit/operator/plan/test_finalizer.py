"""The finalizer that holds a speculator until its stored objects are deleted."""

from __future__ import annotations

from dataclasses import replace

from aurora_api.v1alpha1.conditions import ConditionType
from aurora_api.v1alpha1.status import SpeculatorStatus, VersionStatus
from aurora_operator.plan import Plan
from tests.unit.operator.worlds import MINIMAL, condition, made, observed, spec

DELETING = spec(store=MINIMAL["store"] | {"deletionPolicy": "Delete"})


def test_the_finalizer_comes_before_anything_is_stored_and_goes_when_the_policy_changes() -> None:
    assert made(observed(spec=DELETING)) == Plan(finalizer=True, moving=True)
    assert made(observed(spec=DELETING, has_finalizer=True)).finalizer is None
    assert made(observed(has_finalizer=True)) == Plan(finalizer=False, moving=True)
    assert made(observed()).finalizer is None


def test_a_refused_finalizer_holds_back_nothing_but_the_first_draft() -> None:
    new = observed(spec=DELETING, finalizer_refused=True, apply_errors=("the finalizer: denied",))
    assert made(new) == Plan(finalizer=True, moving=True), "nothing is stored before the finalizer is there"
    served = replace(new, status=SpeculatorStatus(active=VersionStatus(version=0)))
    assert made(served).finalizer, "it is tried again, before the rest"
    assert made(served).children
    assert condition(served, ConditionType.STALLED).reason == "ApplyRefused"
    stays = observed(has_finalizer=True, finalizer_refused=True, apply_errors=("the finalizer: stays",))
    assert made(stays).finalizer is False
    assert made(stays).children, "also a new speculator starts although its finalizer cannot be removed"
    assert condition(stays, ConditionType.STALLED).reason == "ApplyRefused"
