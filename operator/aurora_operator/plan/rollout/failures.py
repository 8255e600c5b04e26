"""Failures of a roll: some reject its version, others end the roll without blame for its version. Pure.

A version is rejected when more engines crash while serving it than while serving others, or when a pod loads it and
does not become ready in time (``absences``). This holds even when live analysis is off; otherwise the version would be
offered again and crash engines forever.

Invariants: time alone never rejects a version. The version is not blamed for an agent that does not answer while its
pod is up, for a node that is lost or restarts, for a store that does not hand the draft out, or while more other pods
are down than the policy allows. A version that cannot be judged keeps a newer one waiting for a while, but not forever.
"""

from __future__ import annotations

from aurora_api.v1alpha1.status import RolloutPhase
from aurora_operator.plan.rollout.absences import return_limit
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
    return _late(facts)


def rejection_in_watch(facts: RolloutFacts) -> Reject | None:
    """Why a promoted version must be rejected because its engines crash or a pod stays away, if it must."""
    if crashes := engine_crashes(facts):
        return crashes
    return _late(facts)


def stop_in_watch(facts: RolloutFacts) -> Stop | None:
    """Why the watch of a promoted version must end without blame for the version, if it must."""
    return _late_among_others(facts)


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
        return Stop("status.operatorState was lost or lacks counters, so the version cannot be judged")
    if not world.pods:
        return Stop("no pod serves or starts any longer")
    if late := _late_among_others(facts):
        return late
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
    version = facts.version
    for pod in facts.world.pods:
        swap = pod.swap
        failed = swap.phase is SwapPhase.FAILED and not swap.transient and swap.version == version
        if failed and pod.version != version and facts.roll.ordered(swap):
            return f"pod {pod.name} could not take version {version}: {swap.error or 'no reason given'}"
    return ""


def _late(facts: RolloutFacts) -> Reject | None:
    text = _late_text(facts)
    return Reject(text) if text and not facts.too_many_others_not_ready else None


def _late_among_others(facts: RolloutFacts) -> Stop | None:
    text = _late_text(facts)
    down = f"{text}, and more pods without the version than rollout.maxNotReady are not ready either"
    return Stop(down) if text and facts.too_many_others_not_ready else None


def _late_text(facts: RolloutFacts) -> str:
    """Which pod did not become ready with the version in time; empty when none."""
    version = facts.version
    if facts.late_load:
        return f"pod {facts.late_load} did not finish loading version {version} within {_deadline_text(facts)}"
    if not facts.late_return:
        return ""
    limit = return_limit(facts.world, facts.late_return)
    longer = f"{limit.total_seconds():.0f} s (what its startup probe allows)"
    allowed = longer if limit > facts.deadline else _deadline_text(facts)
    return f"pod {facts.late_return} did not come back with version {version} for {allowed}"


def _deadline_text(facts: RolloutFacts) -> str:
    return f"{facts.deadline.total_seconds():.0f} s (rollout.progressDeadlineSeconds)"
