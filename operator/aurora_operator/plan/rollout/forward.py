"""The steps of an advancing roll, from its start to the end of its watch: one function per row of the table. Pure."""

from __future__ import annotations

from typing import Any

from aurora_api.v1alpha1.status import RolloutPhase
from aurora_operator.plan.rollout.analysis import live_analysis
from aurora_operator.plan.rollout.facts import RolloutFacts
from aurora_operator.plan.rollout.judgement import WAITING_PREFIX, canary_pods
from aurora_operator.plan.rollout.judgement_types import Hold, Pass, Pause, Start, Wait
from aurora_operator.plan.rollout.roll import NO_ENGINES, AnalysisState, Roll
from aurora_operator.plan.rollout.steps import Advance, Step
from aurora_operator.plan.rollout.swaps import next_swaps, retry_note, return_rejected, return_strays
from aurora_operator.plan.rollout.world import container_starts
from aurora_protocol.draft_records import ChannelReason


def with_fields(roll: Roll, **update: Any) -> Roll:
    return roll.model_copy(update=update)


def with_analysis(roll: Roll, **update: Any) -> Roll:
    """``roll`` with fields of its live analysis replaced; as it is where there is no analysis."""
    return roll if roll.analysis is None else with_fields(roll, analysis=roll.analysis.model_copy(update=update))


def at_rest(roll: Roll, **update: Any) -> Roll:
    """An idle roll. The state of the live analysis and all that was noted about engines is dropped."""
    return with_fields(roll, phase=RolloutPhase.IDLE, analysis=None, **NO_ENGINES, **update)


# idle ----------------------------------------------------------------------------------------------------------------


def start_canary(facts: RolloutFacts, judgement: Start) -> Step:
    """Begin the roll. No pod is asked yet: the decision is stored first."""
    world = facts.world
    rules, total = world.policy.analysis, len(world.pods)
    judged = rules.consecutive_success_limit > 0 or rules.watch_seconds > 0
    started = Roll(
        phase=RolloutPhase.CANARY,
        epoch=facts.roll.epoch + 1,
        first_epoch=facts.roll.epoch + 1,
        version=judgement.version,
        total=total,
        started=world.now,
        progressed=world.now,
        analysis=AnalysisState(serving_digest=world.serving_digest) if judged else None,
        message=f"canary on {canary_pods(facts)} of {total} pods",
    )
    return Step(started, event="RolloutStarted")


def stay_idle(facts: RolloutFacts, judgement: Any) -> Step:
    """Return stray pods to the active version, a few at a time. The message names a wait, if there is one."""
    swaps = return_strays(facts, facts.world.policy.max_swapping)
    return Step(_idle(facts, judgement.reason if isinstance(judgement, Wait) else ""), swaps=swaps)


def stay_idle_paused(facts: RolloutFacts, judgement: Pause) -> Step:
    """Ask no pod to swap, except those that came up with a rejected version."""
    return Step(_idle(facts, judgement.reason), swaps=return_rejected(facts))


def _idle(facts: RolloutFacts, message: str) -> Roll:
    """An idle roll keeps the message with which it ended, but not one about a wait that is over."""
    before = facts.roll.message
    return at_rest(facts.roll, message=message or ("" if before.startswith(WAITING_PREFIX) else before))


# the canary ----------------------------------------------------------------------------------------------------------


def return_third_version(facts: RolloutFacts, judgement: object) -> Step:
    """Bring pods with a third version to the active one before the canary goes on."""
    return Step(_running(facts), swaps=dict.fromkeys(facts.third_version_pods, facts.world.active))


def measure_baseline(facts: RolloutFacts, judgement: object) -> Step:
    """Watch the pods with the active version before the first one gets the new version."""
    world, roll = facts.world, _running(facts)
    assert roll.analysis is not None, "only a roll that is judged needs a baseline"
    no_peers_left = len(world.pods) <= world.policy.canary
    state = live_analysis.measure_baseline(
        roll.analysis,
        facts.peers,
        world.active,
        world.policy.analysis,
        steps=world.draft_steps,
        max_duration=facts.deadline if no_peers_left else None,
        now=world.now,
    )
    message = f"measuring live traffic with version {world.active}, before the first pod gets version {facts.version}"
    progressed = world.now if state.baseline else roll.progressed
    return Step(with_fields(roll, analysis=state, progressed=progressed, message=message))


def swap_canary(facts: RolloutFacts, judgement: object) -> Step:
    """Ask pods for the version until the canary is complete.

    A canary pod that no longer confirms the version is waited for, and not replaced at once.
    """
    roll, wanted = _without_whole_canary(facts), canary_pods(facts)
    message = f"swapping {wanted} of {len(facts.world.pods)} pods to version {facts.version}{retry_note(facts)}"
    return _ask(facts, with_fields(roll, message=message), next_swaps(facts, wanted - facts.uncertain_pods))


def _without_whole_canary(facts: RolloutFacts) -> Roll:
    """The roll, which remembers since when a canary that had its pods already is not whole any more."""
    roll, state = _running(facts), facts.analysis
    if state is None or state.window_begins is None or state.canary_missing_since is not None:
        return roll
    return with_analysis(roll, canary_missing_since=facts.world.now)


def wait_for_judgement(facts: RolloutFacts, judgement: Wait) -> Step:
    """The canary is complete and its traffic does not decide yet."""
    return Step(with_fields(with_analysis(_running(facts), canary_missing_since=None), message=judgement.reason))


def pass_canary(facts: RolloutFacts, judgement: Pass) -> Step:
    """The canary passed: ask the other pods for the version."""
    roll = with_analysis(_running(facts), canary_missing_since=None)
    message = f"{judgement.reason}; the other pods follow"
    rolling = with_fields(roll, phase=RolloutPhase.ROLLING, progressed=facts.world.now, message=message)
    return _ask(facts, rolling, next_swaps(facts, len(facts.ready)), event="CanaryPassed")


def _running(facts: RolloutFacts) -> Roll:
    """The roll with this reconcile's live analysis. A progress deadline that stood still starts again."""
    roll = facts.analysed_roll
    return with_fields(roll, progressed=facts.world.now) if roll.progressed is None else roll


def _ask(facts: RolloutFacts, roll: Roll, swaps: dict[str, int], *, event: str = "") -> Step:
    """Ask pods for the version, and record their engine starts.

    An engine that crashes before the next reconcile therefore counts as crashed.
    """
    asked = [pod for pod in facts.world.pods if pod.name in swaps]
    boots, starts = {pod.name: pod.boot for pod in asked}, container_starts(asked)
    known = with_fields(roll, engine_boots=roll.engine_boots | boots, container_starts=roll.container_starts | starts)
    return Step(known, swaps=swaps, event=event)


# the other pods ------------------------------------------------------------------------------------------------------


def swap_next_pods(facts: RolloutFacts, judgement: object) -> Step:
    return _ask(facts, _running(facts), next_swaps(facts, len(facts.ready)))


def promote(facts: RolloutFacts, judgement: object) -> Step:
    """All pods serve the version: make it the active one."""
    roll = _running(facts)
    advance = Advance(facts.version, ChannelReason.PROMOTED)
    return Step(_promoted(facts, with_fields(roll, epoch=roll.epoch + 1)), advance=advance, event="Promoted")


def record_promotion(facts: RolloutFacts, judgement: object) -> Step:
    """The channel names the version already: the operator died before it wrote the status."""
    return Step(_promoted(facts, facts.roll), event="Promoted")


def _promoted(facts: RolloutFacts, roll: Roll) -> Roll:
    """Watch the promoted version if there is a baseline. Bad judgements of the canary still count."""
    world, state = facts.world, roll.analysis
    message = f"version {facts.version} is active" + ("; a person vouches for it" if facts.vouched else "")
    has_baseline = state is not None and state.baseline is not None
    if facts.vouched or not has_baseline or world.policy.analysis.watch_seconds == 0:
        return at_rest(roll, progressed=world.now, message=message)
    watched = with_analysis(
        roll, window_begins=None, settling=False, canary_missing_since=None, good_windows=0, message=""
    )
    return with_fields(watched, phase=RolloutPhase.WATCHING, progressed=world.now, message=message)


# pauses --------------------------------------------------------------------------------------------------------------


def pause(facts: RolloutFacts, judgement: Pause) -> Step:
    return Step(with_fields(facts.analysed_roll, phase=RolloutPhase.PAUSED, message=judgement.reason), event="Paused")


def stay_paused(facts: RolloutFacts, judgement: object) -> Step:
    return Step(facts.analysed_roll)


def resume(facts: RolloutFacts, judgement: object) -> Step:
    """Go on as a canary. The version passes as soon as it is judged good, even if more pods serve it already."""
    roll = with_analysis(facts.analysed_roll, canary_missing_since=None)
    return Step(
        with_fields(roll, phase=RolloutPhase.CANARY, progressed=facts.world.now, message="resumed"), event="Resumed"
    )


def hold(facts: RolloutFacts, judgement: Hold) -> Step:
    """Ask no pod. The deadlines of the roll and of a canary start again in full when the hold ends.

    They run on when no more pods without the version are away than allowed. Else a version that keeps several engines
    down would hold its own roll forever.
    """
    if not facts.too_many_others_not_ready:
        return Step(with_fields(_without_whole_canary(facts), message=judgement.reason))
    roll = with_analysis(facts.analysed_roll, canary_missing_since=None)
    return Step(with_fields(roll, progressed=None, message=judgement.reason))


# the watch -----------------------------------------------------------------------------------------------------------


def keep_watching(facts: RolloutFacts, judgement: object) -> Step:
    """Go on judging the promoted version. The message names the last judgement."""
    world, roll = facts.world, facts.analysed_roll
    seen = roll.analysis.message if roll.analysis else ""
    message = f"version {facts.version} is active" + (f"; since then {seen}" if seen else "")
    paused = world.policy.paused
    swaps = return_rejected(facts) if paused else return_strays(facts, world.policy.max_swapping)
    return Step(with_fields(roll, message=message), swaps=swaps)


def end_watch(facts: RolloutFacts, judgement: object) -> Step:
    """The version stays active and is not judged any longer."""
    return Step(at_rest(facts.roll))


def end_watch_by_vouching(facts: RolloutFacts, judgement: object) -> Step:
    message = f"version {facts.version} is active; a person vouches for it"
    return Step(at_rest(facts.roll, message=message), event="Vouched")
