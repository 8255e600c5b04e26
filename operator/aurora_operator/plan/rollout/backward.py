"""The steps that end a roll before its version is established, or undo it: one function per row of the table. Pure.

Invariant: a decision to return is stored, with a higher epoch, before any pod is asked. The next reconcile asks all
pods at once.
"""

from __future__ import annotations

from aurora_api.v1alpha1.status import RolloutPhase
from aurora_operator.plan.rollout.facts import RolloutFacts
from aurora_operator.plan.rollout.forward import at_rest, with_fields
from aurora_operator.plan.rollout.judgement_types import AlreadyRejected, Pin, PinLater, Reject, Stop
from aurora_operator.plan.rollout.roll import NO_ENGINES, Roll
from aurora_operator.plan.rollout.steps import Advance, Step
from aurora_operator.plan.rollout.swaps import return_all
from aurora_protocol.draft_records import ChannelReason


def reject(facts: RolloutFacts, judgement: Reject) -> Step:
    """End the roll and reject its version, which never became active."""
    advance = Advance(facts.world.active, ChannelReason.REFUSED, reject=facts.version)
    return Step(_returning(facts, judgement.reason), advance=advance, event="RolloutFailed")


def record_rejection(facts: RolloutFacts, judgement: AlreadyRejected) -> Step:
    """The channel rejects the version already: the operator died before it wrote the status."""
    return Step(_returning(facts, judgement.reason), event="RolloutFailed")


def stop(facts: RolloutFacts, judgement: Stop) -> Step:
    """End the roll without blame for its version, which may be rolled out again."""
    return Step(_returning(facts, judgement.reason), event="RolloutStopped")


def return_to_previous(facts: RolloutFacts, judgement: Reject) -> Step:
    """Reject the active version and make the previous one active again."""
    world = facts.world
    assert world.previous is not None, "the judgement knows that there is a previous version"
    advance = Advance(world.previous, ChannelReason.ROLLED_BACK, reject=world.active)
    returning = with_fields(_returning(facts, judgement.reason), version=world.active)
    return Step(returning, advance=advance, event="RolloutFailed")


def return_pods(facts: RolloutFacts, judgement: object) -> Step:
    """Ask all pods with another version for the active one, at once."""
    return Step(facts.roll, swaps=return_all(facts))


def end_return(facts: RolloutFacts, judgement: object) -> Step:
    """All pods serve the active version again."""
    return Step(at_rest(facts.roll, progressed=facts.world.now), event="RolledBack")


def pin(facts: RolloutFacts, judgement: Pin) -> Step:
    """Make the pinned version active, in any phase. The next reconcile asks the pods to swap."""
    advance = Advance(judgement.version, ChannelReason.PINNED)
    return Step(_pinned(facts, judgement.version), advance=advance, event="Pinned")


def record_pin(facts: RolloutFacts, judgement: object) -> Step:
    """The channel has the pinned version active already: the operator died before it wrote the status."""
    return Step(_pinned(facts, facts.world.active), event="Pinned")


def return_before_pin(facts: RolloutFacts, judgement: PinLater) -> Step:
    """Bring all pods to the active version, so that no third version serves once the pinned one is active."""
    returning = facts.phase is RolloutPhase.ROLLING_BACK
    roll = facts.roll if returning else _returning(facts, judgement.reason)
    return Step(roll, swaps=return_all(facts))


def _pinned(facts: RolloutFacts, version: int) -> Roll:
    return Roll(epoch=facts.roll.epoch + 1, version=version, message=f"version {version} is pinned")


def _returning(facts: RolloutFacts, reason: str) -> Roll:
    return with_fields(
        facts.roll,
        phase=RolloutPhase.ROLLING_BACK,
        epoch=facts.roll.epoch + 1,
        progressed=facts.world.now,
        analysis=None,
        **NO_ENGINES,
        message=reason,
    )
