"""Judges a roll in one reconcile, from the facts. Pure.

Pins come first. Then each phase checks, the most serious first: decisions that the channel records already, failures
that reject the version, reasons to stop without blame, live traffic, and reasons to wait. Without traffic the canary
waits until there is traffic, or until a person promotes or aborts the version.
"""

from __future__ import annotations

from aurora_api.v1alpha1.status import RolloutPhase
from aurora_operator.plan.rollout import failures
from aurora_operator.plan.rollout.facts import RolloutFacts
from aurora_operator.plan.rollout.judgement_types import (
    AlreadyActive,
    AlreadyPinned,
    AlreadyRejected,
    Hold,
    Judgement,
    NoBaseline,
    Pass,
    Pause,
    Pin,
    PinLater,
    Proceed,
    Reject,
    Resume,
    Start,
    Stop,
    ThirdVersion,
    Vouch,
    Wait,
)
from aurora_operator.plan.rollout.world import World
from aurora_protocol.draft_records import ChannelReason

_NOT_JUDGED = "live traffic does not judge it"
WAITING_PREFIX = "waiting "
"""An idle roll drops a message with this prefix once the wait is over."""


def judgement_of(facts: RolloutFacts) -> Judgement:
    """The judgement of this reconcile."""
    pinned = facts.world.pinned_version
    if pinned is not None and pinned != facts.world.active:
        return _pin(facts, pinned)
    if facts.phase is RolloutPhase.IDLE:
        return _idle(facts)
    if facts.phase is RolloutPhase.WATCHING:
        return _watching(facts)
    if facts.phase is RolloutPhase.ROLLING_BACK:
        return _rolling_back(facts)
    return _under_way(facts)


def _pin(facts: RolloutFacts, pinned: int) -> Judgement:
    served = {v for pod in facts.ready for v in (pod.version, pod.swap.version if pod.swapping else None)}
    if len(served - {pinned, None}) > 1:
        return PinLater(f"version {pinned} is pinned; all pods return to version {facts.world.active} first")
    return Pin(pinned)


def _idle(facts: RolloutFacts) -> Judgement:
    world = facts.world
    if world.abort == world.active and world.previous is not None and not world.pin_set:
        return Reject(f"version {world.active} was aborted by a person")
    waiting = f"{WAITING_PREFIX}to roll out version {world.next_version}, which passed its measurement"
    if world.policy.paused and world.pinned_version is None:
        waits = world.next_version is not None
        return Pause(f"{waiting}: {_pause_reason(world)}" if waits else "")
    if world.next_version is None or world.pin_set:
        return Proceed()
    if world.restarting:
        return Wait(f"{waiting}: the pods restart with the upgraded operator's template")
    if facts.settled and not facts.too_many_not_ready:
        return Start(world.next_version)
    return Wait(f"{waiting}: not every pod is ready and serves version {world.active}")


def _under_way(facts: RolloutFacts) -> Judgement:
    """The judgement in the phases Canary, Rolling and Paused."""
    world, version = facts.world, facts.version
    if version == world.active:
        # The operator died after it made the version active in the channel, and before it wrote the status.
        return AlreadyPinned() if world.channel_reason is ChannelReason.PINNED else AlreadyActive()
    if world.pinned_version is not None:
        return Stop(f"version {world.pinned_version} is pinned")
    if version in world.rejected:
        return AlreadyRejected(world.channel_message)
    if ended := failures.rejection(facts) or failures.stop_reason(facts) or _bad_traffic(facts):
        return ended
    if world.policy.paused or world.pin_set:
        return Pause(_pause_reason(world))
    if facts.phase is RolloutPhase.PAUSED:
        return Resume()
    if facts.too_many_not_ready:
        down, allowed = len(world.pods) - len(facts.ready), world.policy.max_not_ready
        return Hold(f"waiting for pods: {down} of {len(world.pods)} are not ready; rollout.maxNotReady is {allowed}")
    return _canary(facts) if facts.phase is RolloutPhase.CANARY else _rolling(facts)


def _pause_reason(world: World) -> str:
    if world.spec_invalid:
        return "the spec cannot be used"
    return "a version is pinned" if world.pin_set else "spec.rollout.paused is true"


def _bad_traffic(facts: RolloutFacts) -> Reject | None:
    """A rejection when live traffic judged the version bad more often than the policy tolerates."""
    state = facts.analysis
    if state is None or state.baseline is None or facts.vouched:
        return None
    many = state.bad_windows > facts.world.policy.analysis.failure_limit
    return Reject(f"live traffic disagrees: {state.message}") if many else None


def _canary(facts: RolloutFacts) -> Judgement:
    world, state = facts.world, facts.analysis
    rules = world.policy.analysis
    if facts.third_version_pods:
        return ThirdVersion()
    if state is not None and state.baseline is None and not facts.vouched:
        return NoBaseline()
    if not facts.ready or len(facts.updated) < min(canary_pods(facts), len(facts.ready)):
        return Proceed()
    if facts.vouched:
        return Pass("a person vouches for it")
    if state is None:
        return Pass(_NOT_JUDGED)
    if state.good_windows >= rules.consecutive_success_limit:
        return Pass(state.message or _NOT_JUDGED)
    versions = f"{rules.min_requests} requests with version {facts.version} and as many with version {world.active}"
    waits = f"a judgement takes {versions}"
    return Wait(f"{state.message}; {waits}" if state.message else waits)


def canary_pods(facts: RolloutFacts) -> int:
    """Number of pods that get the version first."""
    return min(facts.world.policy.canary, len(facts.world.pods))


def _rolling(facts: RolloutFacts) -> Judgement:
    return Pass() if facts.all_updated else Proceed()


def _watching(facts: RolloutFacts) -> Judgement:
    world, state, version = facts.world, facts.roll.analysis, facts.version
    if version != world.active:
        # The operator died after it changed the channel and before it wrote the status, or somebody else changed the
        # channel. A pin rejects nothing.
        if world.channel_reason is ChannelReason.PINNED and version not in world.rejected:
            return AlreadyPinned()
        return AlreadyRejected(world.channel_message or f"version {world.active} was made active")
    if world.abort == version and world.previous is not None:
        return Reject(f"version {version} was aborted by a person")
    if facts.vouched:
        return Vouch()
    if world.pin_set:
        return Stop("a version is pinned")
    if world.previous is None or state is None or state.serving_digest != world.serving_digest:
        return Stop("live traffic can no longer be compared with traffic from before the roll")
    if ended := failures.rejection_in_watch(facts) or failures.stop_in_watch(facts):
        return ended
    if facts.watch_over and not facts.awaits_return:
        return Pass()
    return _bad_traffic(facts) or Proceed()


def _rolling_back(facts: RolloutFacts) -> Judgement:
    return Pass() if facts.returned else Proceed()
