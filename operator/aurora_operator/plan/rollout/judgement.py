"""Judges a roll in one reconcile, from the facts. Pure.

First the roll adopts what the channel says already, and then come pins. Each phase then checks, the most serious first:
failures that reject the version, reasons to stop without blame, live traffic, and reasons to wait. Without traffic the
canary waits until there is traffic, or until a person pins or aborts the version.

Invariants: a version is rejected when more engines crash with it than are tolerated, or when one crashed, and its roll
stands still while a pod with the version is not ready. This holds even when live analysis is off; otherwise the version
would be offered again and crash engines forever. The version is not blamed for an agent that does not answer while its
pod is up, for engines that restart together with their agents, or for a store that does not hand the draft out.
"""

from __future__ import annotations

from dataclasses import dataclass

from aurora_api.v1alpha1.status import RolloutPhase
from aurora_operator.plan.rollout.facts import RolloutFacts
from aurora_protocol.agent_api import SwapPhase


@dataclass(frozen=True)
class Judgement:
    """What a reconcile says of a roll. The docstrings of its kinds are the table of meanings in ARCHITECTURE.md."""

    reason: str = ""


class Adopt(Judgement):
    """The channel says more of the version than the status: the operator died before it wrote the status."""


class Pin(Judgement):
    """A person pinned another version than the active one. While pods that serve two other versions can return to the
    active one, they return first: then the pin brings no third version."""


class Reject(Judgement):
    """The version failed, or a person aborted it. The version is never rolled out again."""


class Stop(Judgement):
    """The roll must end without blame for the version."""


class Pause(Judgement):
    """A person pauses rolls, or pinned a version."""


class Start(Judgement):
    """A version passed its measurement, and every pod that serves is ready for its roll."""


class Wait(Judgement):
    """There is nothing to do yet: a roll may not start, waits for live traffic, or more pods than `max_not_ready` are
    not ready. The progress deadline starts again afterwards."""


class ThirdVersion(Judgement):
    """A pod came up with neither the active nor the rolled version, perhaps without a draft."""


class Proceed(Judgement):
    """Nothing is wrong: more pods have to take the version."""


class Pass(Judgement):
    """The phase has reached its goal: the canary is judged good, or every pod serves the version."""


class Watch(Judgement):
    """The version is active, and is judged on."""


class Keep(Judgement):
    """The active version is not judged any longer: its watch is over, or live traffic can no longer be compared."""


def judgement_of(facts: RolloutFacts) -> Judgement:
    """The judgement of this reconcile."""
    world = facts.world
    if _is_behind(facts):
        return Adopt()
    if world.pinned_version not in (None, world.active):
        return Pin()
    if facts.roll.phase is RolloutPhase.IDLE:
        return _idle(facts)
    return _under_way(facts) if facts.roll.under_way else _watch(facts)


def _is_behind(facts: RolloutFacts) -> bool:
    """Whether the channel changed the active version, or rejected the roll's, and the status does not say so yet."""
    world, roll = facts.world, facts.roll
    if roll.under_way:
        return roll.version == world.active or roll.version in world.rejected
    return roll.promoted and roll.version != world.active


def _idle(facts: RolloutFacts) -> Judgement:
    world = facts.world
    if world.abort == world.active and world.previous is not None and not world.pin_set:
        return Reject(f"version {world.active} was aborted by a person")
    if world.next_version is None or world.pin_set:
        return Wait()
    waits = f"waiting to roll out version {world.next_version}, which passed its measurement"
    if world.paused:
        return Wait(f"{waits}: {world.paused}")
    if facts.too_many_not_ready:
        return Wait(f"{waits}: {_not_ready(facts)}")
    return Start() if facts.settled else Wait(f"{waits}: not every pod serves version {world.active}")


def _under_way(facts: RolloutFacts) -> Judgement:
    """The judgement of a roll whose version is not active yet."""
    world, roll = facts.world, facts.roll
    if ended := _rejection(facts) or _stop(facts) or _bad_traffic(facts):
        return ended
    if facts.third_version_pods:
        return ThirdVersion()
    if world.paused or world.pin_set:
        return Pause(world.paused or "a version is pinned")
    if facts.too_many_not_ready:
        return Wait(f"waiting: {_not_ready(facts)}")
    if roll.phase is RolloutPhase.JUDGING:
        return _canary(facts)
    return Pass() if facts.all_updated else Proceed()


def _not_ready(facts: RolloutFacts) -> str:
    pods, limit = facts.world.pods, facts.world.policy.max_not_ready
    return f"{len(pods) - len(facts.ready)} of {len(pods)} pods are not ready; the limit is {limit}"


def _canary(facts: RolloutFacts) -> Judgement:
    world, state, rules = facts.world, facts.roll.analysis, facts.world.policy.analysis
    if state is not None and state.baseline is None:
        measured = f"live traffic with version {world.active}"
        return Wait(f"measuring {measured}, before the first pod gets version {facts.version}")
    if not facts.ready or len(facts.updated) < min(canary_pods(facts), len(facts.ready)):
        return Proceed()
    if state is None or state.good_windows >= rules.consecutive_success_limit:
        return Pass((state.message if state else "") or "live traffic does not judge it")
    each = f"{rules.min_requests} requests with version {facts.version} and as many with version {world.active}"
    return Wait(f"a judgement takes {each}")


def canary_pods(facts: RolloutFacts) -> int:
    """Number of pods that get the version first."""
    return min(facts.world.policy.canary, len(facts.world.pods))


def _watch(facts: RolloutFacts) -> Judgement:
    """The judgement of a promoted version."""
    world, state, version = facts.world, facts.roll.analysis, facts.version
    if world.abort == version and world.previous is not None:
        return Reject(f"version {version} was aborted by a person")
    if world.pin_set:
        return Keep()
    if world.previous is None or state is None or state.serving_digest != world.serving_digest:
        return Keep()
    if lost := _lost_engines(facts):
        return lost
    if facts.watch_over:
        return Keep()
    return _bad_traffic(facts) or Watch()


# failures ------------------------------------------------------------------------------------------------------------


def _rejection(facts: RolloutFacts) -> Reject | None:
    """Why the version of a roll under way must be rejected, if it must."""
    version = facts.version
    if facts.world.abort == version:
        return Reject(f"version {version} was aborted by a person")
    if reason := _failed_swap(facts):
        return Reject(reason)
    if facts.weights_differ:
        return Reject(f"pods that serve version {version} hold different weights")
    return _lost_engines(facts)


def _failed_swap(facts: RolloutFacts) -> str:
    """Which pod could not take the version, and why; empty when none."""
    version = facts.version
    for pod in facts.world.pods:
        swap = pod.swap
        failed = swap.phase is SwapPhase.FAILED and not swap.transient and swap.version == version
        if failed and pod.version != version:
            return f"pod {pod.name} could not take version {version}: {swap.error or 'no reason given'}"
    return ""


def _lost_engines(facts: RolloutFacts) -> Reject | None:
    """A rejection when more engines crashed with the version than the policy tolerates, or one has not come back.

    If the roll then ended without blame, it would begin again, and crash the same engine again.
    """
    count, crashed = facts.roll.engine_crashes, f"crashed while serving version {facts.version}"
    if count > facts.world.policy.analysis.failure_limit:
        return Reject(f"{count} engines {crashed}")
    away = any(pod.name in facts.roll.lone_restarts and not pod.kubernetes_ready for pod in facts.world.pods)
    return Reject(f"an engine {crashed}, and {_no_progress(facts)}") if count and away and facts.no_progress else None


def _no_progress(facts: RolloutFacts) -> str:
    return f"the roll made no progress for {facts.world.policy.progress_deadline_seconds} s"


def _bad_traffic(facts: RolloutFacts) -> Reject | None:
    """A rejection when live traffic judged the version bad more often than the policy tolerates."""
    state = facts.roll.analysis
    if state is None or state.bad_windows <= facts.world.policy.analysis.failure_limit:
        return None
    return Reject(f"live traffic disagrees: {state.message}")


def _stop(facts: RolloutFacts) -> Stop | None:
    """Why a roll under way must end without blame for its version, if it must."""
    world, roll, version = facts.world, facts.roll, facts.version
    state, newest = roll.analysis, world.newest_version
    settings_changed = state is not None and state.serving_digest != world.serving_digest
    reasons = (
        (world.pinned_version is not None, f"version {world.pinned_version} is pinned"),
        (
            version not in world.promotable,
            f"no measurement shows that version {version} may replace version {world.active}",
        ),
        (roll.state_lost, "status.operatorState was lost, so the version cannot be judged"),
        (not world.pods, "no pod serves or starts any longer"),
        (facts.no_progress, _no_progress(facts)),
        (settings_changed and roll.phase is RolloutPhase.JUDGING, "the serving settings were changed"),
        (
            newest > version and facts.starved,
            f"live traffic cannot decide about version {version}, and version {newest} is newer",
        ),
    )
    return next((Stop(reason) for holds, reason in reasons if holds), None)
