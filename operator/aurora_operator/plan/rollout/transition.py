"""The rollout's state machine: phase x judgement -> step. Pure; time is an argument.

:func:`step` is the only entry point. It derives the facts of this reconcile, judges them, and finds the row for the
phase and the judgement in :data:`TRANSITIONS`. ARCHITECTURE.md shows the same table (``transition_table``).

Invariants: a pod is only ever asked for the active version or for the version being rolled out, and for the latter only
while the version is in ``World.promotable`` (promise 1). A roll starts only from pods that all serve the active
version, so at most two versions serve (promise 3). Only an observed failure or a person rejects a version, never time
alone. A restarted operator needs only the :class:`Roll`, the channel and the pods themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aurora_api.v1alpha1.status import RolloutPhase
from aurora_operator.plan.rollout import backward, forward
from aurora_operator.plan.rollout.facts import RolloutFacts, facts_of
from aurora_operator.plan.rollout.judgement import judgement_of
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
from aurora_operator.plan.rollout.roll import UNDER_WAY, Roll
from aurora_operator.plan.rollout.steps import Step
from aurora_operator.plan.rollout.swaps import retry_state
from aurora_operator.plan.rollout.world import World

Action = Callable[[RolloutFacts, Any], Step]

IDLE, CANARY, ROLLING = RolloutPhase.IDLE, RolloutPhase.CANARY, RolloutPhase.ROLLING
WATCHING, ROLLING_BACK, PAUSED = RolloutPhase.WATCHING, RolloutPhase.ROLLING_BACK, RolloutPhase.PAUSED
EVERY_PHASE = tuple(RolloutPhase)
BEFORE_PROMOTION = (CANARY, ROLLING, PAUSED)


@dataclass(frozen=True)
class Transition:
    """One row of the table: in any of ``phases``, ``judgement`` leads to one of ``leads_to`` through ``action``."""

    phases: tuple[RolloutPhase, ...]
    judgement: type[Judgement]
    action: Action
    leads_to: tuple[RolloutPhase, ...]
    channel: str = ""
    """The change of the channel."""
    pods: str = ""
    """The pods that are asked, and for which version."""
    event: str = ""


TRANSITIONS = (
    Transition(EVERY_PHASE, Pin, backward.pin, (IDLE,), "pinned version active", "", "Pinned"),
    Transition(EVERY_PHASE, PinLater, backward.return_before_pin, (ROLLING_BACK,), "", "all to the active version"),
    # Idle
    Transition((IDLE,), Reject, backward.return_to_previous, (ROLLING_BACK,), "previous active; version rejected", "",
               "RolloutFailed"),
    Transition((IDLE,), Pause, forward.stay_idle_paused, (IDLE,), "", "those with a rejected version to the active"),
    Transition((IDLE,), Start, forward.start_canary, (CANARY,), "", "", "RolloutStarted"),
    Transition((IDLE,), Wait, forward.stay_idle, (IDLE,), "", "strays to the active version"),
    Transition((IDLE,), Proceed, forward.stay_idle, (IDLE,), "", "strays to the active version"),
    # Canary, Rolling, Paused
    Transition(BEFORE_PROMOTION, AlreadyActive, forward.record_promotion, (WATCHING, IDLE), "", "", "Promoted"),
    Transition(BEFORE_PROMOTION, AlreadyPinned, backward.record_pin, (IDLE,), "", "", "Pinned"),
    Transition(BEFORE_PROMOTION, AlreadyRejected, backward.record_rejection, (ROLLING_BACK,), "", "", "RolloutFailed"),
    Transition(BEFORE_PROMOTION, Reject, backward.reject, (ROLLING_BACK,), "version rejected", "", "RolloutFailed"),
    Transition(BEFORE_PROMOTION, Stop, backward.stop, (ROLLING_BACK,), "", "", "RolloutStopped"),
    Transition((CANARY, ROLLING), Pause, forward.pause, (PAUSED,), "", "", "Paused"),
    Transition((PAUSED,), Pause, forward.stay_paused, (PAUSED,)),
    Transition((PAUSED,), Resume, forward.resume, (CANARY,), "", "", "Resumed"),
    Transition((CANARY,), Hold, forward.hold, (CANARY,)),
    Transition((CANARY,), ThirdVersion, forward.return_third_version, (CANARY,), "", "strays to the active version"),
    Transition((CANARY,), NoBaseline, forward.measure_baseline, (CANARY,)),
    Transition((CANARY,), Proceed, forward.swap_canary, (CANARY,), "", "canary pods to the new version"),
    Transition((CANARY,), Wait, forward.wait_for_judgement, (CANARY,)),
    Transition((CANARY,), Pass, forward.pass_canary, (ROLLING,), "", "next pods to the new version", "CanaryPassed"),
    Transition((ROLLING,), Hold, forward.hold, (ROLLING,)),
    Transition((ROLLING,), Proceed, forward.swap_next_pods, (ROLLING,), "", "next pods to the new version"),
    Transition((ROLLING,), Pass, forward.promote, (WATCHING, IDLE), "version active", "", "Promoted"),
    # Watching
    Transition((WATCHING,), AlreadyPinned, backward.record_pin, (IDLE,), "", "", "Pinned"),
    Transition((WATCHING,), AlreadyRejected, backward.record_rejection, (ROLLING_BACK,), "", "", "RolloutFailed"),
    Transition((WATCHING,), Reject, backward.return_to_previous, (ROLLING_BACK,), "previous active; version rejected",
               "", "RolloutFailed"),
    Transition((WATCHING,), Vouch, forward.end_watch_by_vouching, (IDLE,), "", "", "Vouched"),
    Transition((WATCHING,), Stop, forward.end_watch, (IDLE,)),
    Transition((WATCHING,), Proceed, forward.keep_watching, (WATCHING,), "", "strays to the active version"),
    Transition((WATCHING,), Pass, forward.end_watch, (IDLE,)),
    # RollingBack
    Transition((ROLLING_BACK,), Proceed, backward.return_pods, (ROLLING_BACK,), "", "all to the active version"),
    Transition((ROLLING_BACK,), Pass, backward.end_return, (IDLE,), "", "", "RolledBack"),
)  # fmt: skip
"""The whole machine. Every pair of phase and judgement that can occur has one row."""

_BY_PHASE_AND_JUDGEMENT = {(phase, row.judgement): row for row in TRANSITIONS for phase in row.phases}


def step(world: World, stored: Roll) -> Step:
    """The next step from the ``stored`` roll, whatever happened since it was stored."""
    facts = facts_of(world, stored)
    judgement = judgement_of(facts)
    row = _BY_PHASE_AND_JUDGEMENT[facts.phase, type(judgement)]
    made = row.action(facts, judgement)
    assert made.rollout.phase in row.leads_to, f"the table does not know {facts.phase} -> {made.rollout.phase}"
    assert made.event == row.event, f"the table does not know the event {made.event}"
    rollout = _with_counts(facts, stored, made.rollout)
    rollout = rollout.model_copy(update=retry_state(facts, made.swaps))
    return Step(rollout, made.swaps, made.advance, made.event)


def _with_counts(facts: RolloutFacts, stored: Roll, roll: Roll) -> Roll:
    """``roll`` with its counts of pods and its last judgement. More pods on the version is progress."""
    if roll.version is None:
        return roll
    world = facts.world
    updated = sum(pod.confirms(roll.version) for pod in world.pods)
    judged = facts.analysis is not None and roll.version == facts.roll.version
    judgement = facts.analysis.message if judged and facts.analysis is not None else ""
    update: dict[str, Any] = {
        "updated": updated,
        "total": len(world.pods),
        "last_judgement": judgement or roll.last_judgement,
    }
    if updated > stored.updated and roll.phase in UNDER_WAY and roll.progressed is not None:
        update["progressed"] = world.now
    return roll.model_copy(update=update)
