"""Failures of a roll: some reject its version, others end the roll without blame for its version. Pure.

A version is rejected when more engines crash while serving it than while serving others, or when a pod loads it and
never becomes ready. This holds even when live analysis is off; otherwise the version would be offered again and crash
engines forever.

Invariants: time alone never rejects a version. An agent that does not answer while its pod is up, or a store that does
not hand the draft out, says nothing about the version. A version that cannot be judged keeps a newer one waiting for a
while, but not forever.
"""

from __future__ import annotations

from aurora_api.v1alpha1.status import RolloutPhase
from aurora_operator.plan.rollout.facts import RolloutFacts
from aurora_operator.plan.rollout.judgement_types import Reject, Stop
from aurora_protocol.agent_api import SwapPhase


def rejection(facts: RolloutFacts) -> Reject | None:
    """Why the version of a roll under way must be rejected, if it must."""
    version = facts.version
    if facts.world.abort == version:
        return Reject(f"version {version} was aborted by a person")
    if reason := _failed_swap(facts):
        return Reject(reason)
    if facts.weights_differ:
        return Reject(f"pods that serve version {version} hold different weights")
    if crashes := engine_crashes(facts):
        return crashes
    absent = facts.loading_pod or facts.missing_pod
    return _did_not_come_back(facts, absent) if absent and facts.no_progress else None


def rejection_in_watch(facts: RolloutFacts) -> Reject | None:
    """Why a promoted version must be rejected because its engines crash or a pod stays away, if it must."""
    if crashes := engine_crashes(facts):
        return crashes
    overdue = facts.missing_pod and facts.watch_overdue and not facts.too_many_not_ready
    return _did_not_come_back(facts, facts.missing_pod) if overdue else None


def engine_crashes(facts: RolloutFacts) -> Reject | None:
    """A rejection when more engines crashed with the version than the policy tolerates.

    Engines of other versions that crashed in the same roll raise the limit: the version did not end them, so something
    else ends engines, and may have ended those with the version.
    """
    count = facts.roll.engine_crashes
    if count - facts.roll.other_crashes <= facts.world.policy.analysis.failure_limit:
        return None
    return Reject(f"{count} engines crashed while serving version {facts.version}")


def stop_reason(facts: RolloutFacts) -> Stop | None:
    """Why a roll under way must end without blame for its version, if it must."""
    world, version, state = facts.world, facts.version, facts.roll.analysis
    if version not in world.promotable:
        return Stop(f"no measurement shows that version {version} may replace version {world.active}")
    if facts.roll.state_lost:
        return Stop("status.operatorState was lost, so the version cannot be judged")
    if not world.pods:
        return Stop("no pod serves or starts any longer")
    if facts.no_progress:
        return Stop(f"the roll made no progress for {_deadline_text(facts)}")
    settings_changed = state is not None and state.serving_digest != world.serving_digest
    if settings_changed and facts.phase is not RolloutPhase.ROLLING:
        return Stop("the serving settings were changed")
    if world.newer_version is not None and facts.starved:
        return Stop(f"live traffic cannot decide about version {version}, and version {world.newer_version} is newer")
    return None


def _failed_swap(facts: RolloutFacts) -> str:
    """Which pod could not take the version in this roll, and why; empty when none."""
    version, started = facts.version, facts.roll.started
    for pod in facts.world.pods:
        swap = pod.swap
        of_this_roll = started is None or swap.finished is None or swap.finished >= started
        failed = swap.phase is SwapPhase.FAILED and not swap.transient and swap.version == version
        if failed and pod.version != version and of_this_roll:
            return f"pod {pod.name} could not take version {version}: {swap.error or 'no reason given'}"
    return ""


def _did_not_come_back(facts: RolloutFacts, pod: str) -> Reject:
    return Reject(f"pod {pod} did not come back with version {facts.version} for {_deadline_text(facts)}")


def _deadline_text(facts: RolloutFacts) -> str:
    return f"{facts.deadline.total_seconds():.0f} s (rollout.progressDeadlineSeconds)"
