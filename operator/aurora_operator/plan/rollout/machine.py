"""The rollout's state machine: phase x judgement -> step. Pure; time is an argument.

:func:`step` is the only entry point. It derives the facts of this reconcile, judges them, and finds the row for the
phase and the judgement in :data:`TRANSITIONS`. ARCHITECTURE.md shows the same table: ``python -m tests.generated``
writes it there after a change.

A *stray* pod serves another version than the active one, or no draft. While nothing is rolled out, all strays return to
the active version at once, even during a pause.

Judging begins with the canary, and continues as a watch once the version is active. A roll that ended is idle: its pods
return to the active version.

Invariants: a pod is only ever asked for the active version or for the version being rolled out, and for the latter only
while the version is in ``World.promotable`` (promise 1). A roll starts only when every pod that serves has the active
version, so at most two versions serve (promise 3). A pod that comes up later with an older version is swapped first.
Only an observed failure or a person rejects a version, never time alone. A decision is stored, with a higher epoch,
before any pod is asked. No pod is asked while it swaps, except to give up the download of another version. Pods that
are not ready are not asked. A restarted operator needs only the :class:`Roll`, the channel and the pods themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aurora_api.v1alpha1.status import RolloutPhase
from aurora_operator.plan.rollout import judgement as judged
from aurora_operator.plan.rollout.facts import RolloutFacts, facts_of
from aurora_operator.plan.rollout.judgement import Judgement, canary_pods, judgement_of
from aurora_operator.plan.rollout.roll import AnalysisState, Roll
from aurora_operator.plan.rollout.world import Pod, World
from aurora_protocol.agent_api import SwapPhase
from aurora_protocol.draft_records import ChannelReason


@dataclass(frozen=True)
class Advance:
    """The channel's next record."""

    active: int
    reason: ChannelReason
    reject: int | None = None
    """Never roll out this version again."""


@dataclass(frozen=True)
class Step:
    """The actions of one reconcile, in this order: ``advance`` the channel, store ``rollout``, then ``swaps``.

    The channel comes first, because a roll whose version is active already is known to be over. Swaps come last,
    because an operator that dies before them must find the decision behind them.
    """

    rollout: Roll
    swaps: dict[str, int] = field(default_factory=dict)
    """Pod -> version."""
    advance: Advance | None = None
    """``rollout.message`` says why."""
    event: str = ""
    """One of the row's events; empty when nothing was decided."""


def with_fields(roll: Roll, **update: Any) -> Roll:
    return roll.model_copy(update=update)


def _at_rest(facts: RolloutFacts, message: str, version: int | None = None) -> Roll:
    """An idle roll. All that was noted about live traffic and engines is dropped.

    Args:
        version: that the roll was about, if not the roll's own.
    """
    roll = facts.roll
    return Roll(
        version=roll.version if version is None else version,
        epoch=roll.epoch + 1,
        started=roll.started,
        progressed=facts.world.now,
        updated=roll.updated,
        total=roll.total,
        last_judgement=roll.last_judgement,
        message=message,
    )


def _running(facts: RolloutFacts) -> Roll:
    """The roll. A progress deadline that stood still starts again."""
    roll = facts.roll
    return with_fields(roll, progressed=facts.world.now) if roll.progressed is None else roll


# the end of a roll ---------------------------------------------------------------------------------------------------


def adopt(facts: RolloutFacts, judgement: Judgement) -> Step:
    """Bring the roll to what the channel says. A pin rejects nothing, and promotes nothing that a watch would judge."""
    world, version = facts.world, facts.version
    if world.channel_reason is ChannelReason.PINNED and version not in world.rejected:
        return Step(_pinned(facts, world.active), event="Pinned")
    if version == world.active:
        return Step(_promoted(facts, facts.roll), event="Promoted")
    message = world.channel_message or f"version {world.active} was made active"
    return Step(_at_rest(facts, message), event="RolloutFailed")


def pin(facts: RolloutFacts, judgement: Judgement) -> Step:
    """Make the pinned version active. The next reconcile asks the pods to swap.

    A pod that cannot load the active version is not waited for: a pin is the emergency brake.
    """
    world, pinned = facts.world, facts.world.pinned_version
    assert pinned is not None, "the judgement knows that there is a pin"
    able = [pod for pod in facts.ready if not _failed(pod, world.active)]
    served = {v for pod in able for v in (pod.version, pod.swap.version if pod.swapping else None)}
    if len(served - {pinned, None}) > 1:
        message = f"version {pinned} is pinned; all pods return to version {world.active} first"
        returning = facts.roll if facts.roll.phase is RolloutPhase.IDLE else _at_rest(facts, message)
        return Step(returning, swaps=return_strays(facts))
    return Step(_pinned(facts, pinned), advance=Advance(pinned, ChannelReason.PINNED), event="Pinned")


def _pinned(facts: RolloutFacts, version: int) -> Roll:
    return Roll(epoch=facts.roll.epoch + 1, version=version, message=f"version {version} is pinned")


def reject(facts: RolloutFacts, judgement: Judgement) -> Step:
    """Reject the roll's version. If it is active already, the previous version becomes active again."""
    world = facts.world
    if facts.roll.under_way:
        advance = Advance(world.active, ChannelReason.REFUSED, reject=facts.version)
        return Step(_at_rest(facts, judgement.reason), advance=advance, event="RolloutFailed")
    assert world.previous is not None, "the judgement knows that there is a previous version"
    advance = Advance(world.previous, ChannelReason.ROLLED_BACK, reject=world.active)
    return Step(_at_rest(facts, judgement.reason, world.active), advance=advance, event="RolloutFailed")


def stop(facts: RolloutFacts, judgement: Judgement) -> Step:
    """End the roll without blame for its version, which may be rolled out again."""
    return Step(_at_rest(facts, judgement.reason), event="RolloutStopped")


# idle ----------------------------------------------------------------------------------------------------------------


def start_canary(facts: RolloutFacts, judgement: Judgement) -> Step:
    """Begin the roll. No pod is asked yet: the decision is stored first."""
    world = facts.world
    has_judge, total = world.policy.analysis.consecutive_success_limit > 0, len(world.pods)
    started = Roll(
        phase=RolloutPhase.JUDGING,
        epoch=facts.roll.epoch + 1,
        version=world.next_version,
        total=total,
        started=world.now,
        progressed=world.now,
        analysis=AnalysisState(serving_digest=world.serving_digest) if has_judge else None,
        message=f"canary on {canary_pods(facts)} of {total} pods",
    )
    return Step(started, event="RolloutStarted")


def rest(facts: RolloutFacts, judgement: Judgement) -> Step:
    """Return stray pods to the active version, while nothing is rolled out or the active version is watched."""
    return Step(facts.roll, swaps=return_strays(facts))


# waiting -------------------------------------------------------------------------------------------------------------


def pause(facts: RolloutFacts, judgement: Judgement) -> Step:
    """Ask no pod. Live traffic goes on judging the version. The deadlines start again in full when the pause ends."""
    return Step(with_fields(facts.roll, progressed=None), event="" if facts.roll.paused else "Paused")


def wait(facts: RolloutFacts, judgement: Judgement) -> Step:
    """Ask no pod. The roll's deadline starts again in full afterwards.

    The deadline runs on while only agents do not answer: nobody knows when they will.
    """
    world = facts.world
    unready = sum(not pod.kubernetes_ready for pod in world.pods)
    held_by_agents = facts.too_many_not_ready and unready <= world.policy.max_not_ready
    return Step(_running(facts) if held_by_agents else with_fields(facts.roll, progressed=None))


# the canary ----------------------------------------------------------------------------------------------------------


def return_third_version(facts: RolloutFacts, judgement: Judgement) -> Step:
    """Bring pods with a third version to the active one before the roll goes on, also in a pause."""
    return Step(_running(facts), swaps=dict.fromkeys(facts.third_version_pods, facts.world.active))


def swap_canary(facts: RolloutFacts, judgement: Judgement) -> Step:
    """Ask pods for the version until the canary is complete.

    A canary pod that no longer confirms the version is waited for, and not replaced at once.
    """
    roll, wanted = _running(facts), canary_pods(facts)
    message = f"swapping {wanted} of {len(facts.world.pods)} pods to version {facts.version}"
    return _ask(facts, with_fields(roll, message=message), _next_swaps(facts, wanted - facts.uncertain_pods))


def pass_canary(facts: RolloutFacts, judgement: Judgement) -> Step:
    """The canary passed: ask the other pods for the version."""
    message = f"{judgement.reason}; the other pods follow"
    rolling = with_fields(facts.roll, phase=RolloutPhase.ROLLING, progressed=facts.world.now, message=message)
    return _ask(facts, rolling, _next_swaps(facts, len(facts.ready)), event="CanaryPassed")


def _ask(facts: RolloutFacts, roll: Roll, swaps: dict[str, int], *, event: str = "") -> Step:
    """Ask pods for the version, and record how often their engines were restarted.

    An engine that crashes before the next reconcile therefore counts as crashed.
    """
    asked = {p.name: p.lone_restarts for p in facts.world.pods if p.name in swaps and p.lone_restarts is not None}
    return Step(with_fields(roll, lone_restarts=roll.lone_restarts | asked), swaps=swaps, event=event)


# the other pods, and the watch ---------------------------------------------------------------------------------------


def swap_next_pods(facts: RolloutFacts, judgement: Judgement) -> Step:
    return _ask(facts, _running(facts), _next_swaps(facts, len(facts.ready)))


def promote(facts: RolloutFacts, judgement: Judgement) -> Step:
    """All pods serve the version: make it the active one."""
    roll = _running(facts)
    advance = Advance(facts.version, ChannelReason.PROMOTED)
    return Step(_promoted(facts, with_fields(roll, epoch=roll.epoch + 1)), advance=advance, event="Promoted")


def _promoted(facts: RolloutFacts, roll: Roll) -> Roll:
    """Watch the promoted version if there is a baseline. Bad judgements of the canary still count."""
    world, state = facts.world, roll.analysis
    message = f"version {facts.version} is active"
    if state is None or state.baseline is None or world.policy.analysis.watch_seconds == 0:
        return _at_rest(facts, message)
    begun = {"window_begins": None, "good_windows": 0, "message": ""}
    return with_fields(
        roll,
        phase=RolloutPhase.JUDGING,
        promoted=True,
        progressed=world.now,
        analysis=state.model_copy(update=begun),
        message=message,
    )


def end_watch(facts: RolloutFacts, judgement: Judgement) -> Step:
    """The version stays active and is not judged any longer."""
    return Step(_at_rest(facts, f"version {facts.version} is active"))


# the pods to ask -----------------------------------------------------------------------------------------------------


def return_strays(facts: RolloutFacts) -> dict[str, int]:
    """Swaps of every pod that serves or downloads another version to the active one.

    The agent gives the download up. Else it would load that version at the end of the download.
    """
    active = facts.world.active
    strays = [
        pod.name
        for pod in facts.ready
        if (pod.swap.version if pod.swap.phase is SwapPhase.STAGING else pod.version) != active
        and pod.swap.phase is not SwapPhase.SWAPPING
    ]
    return dict.fromkeys(sorted(strays), active)


def _next_swaps(facts: RolloutFacts, wanted: int) -> dict[str, int]:
    """Swaps of further pods until ``wanted`` pods have the version or are on their way; third versions come first."""
    world, version = facts.world, facts.version
    if facts.too_many_not_ready:
        return {}
    having = [pod for pod in world.pods if pod.version == version or (pod.swapping and pod.swap.version == version)]
    others = [pod for pod in facts.ready if pod.version != version and not pod.swapping]
    room = min(world.policy.max_swapping - sum(pod.swapping for pod in world.pods), wanted - len(having))
    others.sort(key=lambda pod: (_failed(pod, version), pod.version == world.active, pod.name))
    return dict.fromkeys([pod.name for pod in others][: max(room, 0)], version)


def _failed(pod: Pod, version: int) -> bool:
    return pod.swap.phase is SwapPhase.FAILED and pod.swap.version == version


# the table ------------------------------------------------------------------------------------------------------------


IDLE, JUDGING, ROLLING = RolloutPhase.IDLE, RolloutPhase.JUDGING, RolloutPhase.ROLLING
EVERY_PHASE, UNDER_WAY = (IDLE, JUDGING, ROLLING), (JUDGING, ROLLING)


@dataclass(frozen=True)
class Transition:
    """One row of the table: in any of ``phases``, ``judgement`` leads to one of ``leads_to`` through ``action``."""

    phases: tuple[RolloutPhase, ...]
    judgement: type[Judgement]
    action: Callable[[RolloutFacts, Judgement], Step]
    leads_to: tuple[RolloutPhase, ...] = ()
    """Empty: the phase stays."""
    channel: str = ""
    """The change of the channel."""
    pods: str = ""
    """The pods that are asked, and for which version."""
    events: tuple[str, ...] = ()


TRANSITIONS = (
    Transition(UNDER_WAY, judged.Adopt, adopt, (IDLE, JUDGING), "", "",
               ("Promoted", "Pinned", "RolloutFailed")),
    Transition(EVERY_PHASE, judged.Pin, pin, (IDLE,), "pinned version active, once no third version serves",
               "until then all to the active version", ("Pinned",)),
    Transition(EVERY_PHASE, judged.Reject, reject, (IDLE,),
               "version rejected; previous active if the version was", "", ("RolloutFailed",)),
    # Idle
    Transition((IDLE,), judged.Start, start_canary, (JUDGING,), "", "", ("RolloutStarted",)),
    Transition((IDLE,), judged.Wait, rest, (), "", "strays to the active version"),
    # Judging, before the version is active, and Rolling
    Transition(UNDER_WAY, judged.Stop, stop, (IDLE,), "", "", ("RolloutStopped",)),
    Transition(UNDER_WAY, judged.Pause, pause, (), "", "", ("Paused",)),
    Transition(UNDER_WAY, judged.Wait, wait),
    Transition(UNDER_WAY, judged.ThirdVersion, return_third_version, (), "",
               "those with a third version to the active"),
    Transition((JUDGING,), judged.Proceed, swap_canary, (), "", "canary pods to the new version"),
    Transition((JUDGING,), judged.Pass, pass_canary, (ROLLING,), "", "next pods to the new version",
               ("CanaryPassed",)),
    Transition((ROLLING,), judged.Proceed, swap_next_pods, (), "", "next pods to the new version"),
    Transition((ROLLING,), judged.Pass, promote, (JUDGING, IDLE), "version active", "", ("Promoted",)),
    # Judging, once the version is active
    Transition((JUDGING,), judged.Watch, rest, (), "", "strays to the active version"),
    Transition((JUDGING,), judged.Keep, end_watch, (IDLE,)),
)  # fmt: skip
"""The whole machine. Every pair of phase and judgement that can occur has one row."""

_BY_PHASE_AND_JUDGEMENT = {(phase, row.judgement): row for row in TRANSITIONS for phase in row.phases}


def step(world: World, stored: Roll) -> Step:
    """The next step from the ``stored`` roll, whatever happened since it was stored."""
    return judged_step(world, stored)[1]


def judged_step(world: World, stored: Roll) -> tuple[Judgement, Step]:
    """:func:`step`, with the judgement that leads to it."""
    facts = facts_of(world, stored)
    judgement = judgement_of(facts)
    made = _BY_PHASE_AND_JUDGEMENT[facts.roll.phase, type(judgement)].action(facts, judgement)
    waits = judgement.reason if isinstance(judgement, (judged.Wait, judged.Pause)) else ""
    update = {"waiting": waits, "paused": isinstance(judgement, judged.Pause)}
    rollout = _with_counts(facts, stored, made.rollout).model_copy(update=update)
    return judgement, Step(rollout, made.swaps, made.advance, made.event)


def _with_counts(facts: RolloutFacts, stored: Roll, roll: Roll) -> Roll:
    """``roll`` with its counts of pods and its last judgement. More pods on the version is progress."""
    if roll.version is None:
        return roll
    world = facts.world
    updated = sum(pod.confirms(roll.version) for pod in world.pods)
    state = facts.roll.analysis if roll.version == facts.roll.version else None
    last = (state.message if state else "") or roll.last_judgement
    update: dict[str, Any] = {"updated": updated, "total": len(world.pods), "last_judgement": last}
    if updated > stored.updated and roll.under_way and roll.progressed is not None:
        update["progressed"] = world.now
    return roll.model_copy(update=update)
