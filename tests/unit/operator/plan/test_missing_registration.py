"""A version that pods must take whose registration somebody deleted from the store."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aurora_api.v1alpha1.status import RolloutPhase, RolloutStatus, SpeculatorStatus
from aurora_operator.children.inference_deployment import choice_digest
from aurora_operator.observe.observed import Observed
from aurora_operator.plan.rollout.roll import AnalysisState, Roll
from aurora_protocol.agent_api import LiveCounters
from tests.unit.operator.worlds import NOW, channel, digest, made, observed, pod, store


def returning(*, signed: bool) -> Observed:
    """The canary of version 1 failed, and its pod has to return to version 0, which is not registered any more."""
    named = channel(0, epoch=2).model_copy(update={"active_digest": digest(0) if signed else None})
    roll = RolloutStatus(phase=RolloutPhase.IDLE, version=1, epoch=4)
    return observed(
        store=replace(store(1), channel=named),
        pods=(pod("chat-a", 1), pod("chat-b", 0)),
        status=SpeculatorStatus(rollout=roll),
    )


def watched() -> Observed:
    """Version 1 was promoted and is watched. Version 0 is not registered any more."""
    digests = {"active_digest": digest(1), "previous_digest": digest(0)}
    named = channel(1, epoch=2, previous=0).model_copy(update=digests)
    analysis = AnalysisState(serving_digest=choice_digest(observed().owner, observed().spec), baseline=LiveCounters())
    roll = Roll(phase=RolloutPhase.JUDGING, version=1, epoch=2, promoted=True, progressed=NOW, analysis=analysis)
    rollout, operator_state = roll.status_parts()
    return observed(
        store=replace(store(1), channel=named),
        pods=(pod("chat-a", 1), pod("chat-b", 1)),
        status=SpeculatorStatus(rollout=rollout, operator_state=operator_state),
    )


@pytest.mark.parametrize("signed", [True, False])
def test_a_pod_is_asked_by_the_digest_that_the_signed_record_names(*, signed: bool) -> None:
    """An agent loads only weights with this digest, and still has those of the former version on its disk."""
    world = returning(signed=signed)
    asked = [(swap.pod, swap.request.version, swap.request.digest) for swap in made(world).swaps]
    assert asked == ([("chat-a", 0, digest(0))] if signed else [])


def test_a_rollback_goes_on_without_the_registration_of_the_former_version() -> None:
    world = watched()
    result = made(replace(world, abort=1))
    assert result.advance is not None
    assert result.status is not None
    assert (result.advance.active, result.advance.active_digest) == (0, digest(0))
    after = replace(world, store=replace(world.store, channel=result.advance), status=result.status)
    assert {(swap.request.version, swap.request.digest) for swap in made(after).swaps} == {(0, digest(0))}
