"""The rollout's state machine: phase x judgement -> step. Pure; time is an argument.

:func:`step` is the only entry point. It derives the facts of this reconcile, judges them, and finds the row for the
phase and the judgement in :data:`TRANSITIONS`. ARCHITECTURE.md shows the same table: ``python -m tests.generated``
writes it there after a change.

Judging begins with the canary, and continues as a watch once the version is active. A roll that ended is idle: its pods
return to the active version.

Invariants: a pod is only ever asked for the active version or for the version being rolled out, and for the latter only
while the version is in ``World.promotable`` (promise 1). A roll starts only when every pod that serves has the active
version, so at most two versions serve (promise 3). A pod that comes up later with an older version is swapped first.
Only an observed failure or a person rejects a version, never time alone. A restarted operator needs only the
:class:`Roll`, the channel and the pods themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aurora_api.v1alpha1.status import RolloutPhase
from aurora_operator.plan.rollout import judgement as judged
from aurora_operator.plan.rollout import transition
from aurora_operator.plan.rollout.facts import RolloutFacts, facts_of
from aurora_operator.plan.rollout.judgement import Judgement, judgement_of
from aurora_operator.plan.rollout.roll import Roll
from aurora_operator.plan.rollout.transition import Step
from aurora_operator.plan.rollout.world import World

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
    Transition(UNDER_WAY, judged.Adopt, transition.adopt, (IDLE, JUDGING), "", "",
               ("Promoted", "Pinned", "RolloutFailed")),
    Transition(EVERY_PHASE, judged.Pin, transition.pin, (IDLE,), "pinned version active, once no third version serves",
               "until then all to the active version", ("Pinned",)),
    Transition(EVERY_PHASE, judged.Reject, transition.reject, (IDLE,),
               "version rejected; previous active if the version was", "", ("RolloutFailed",)),
    # Idle
    Transition((IDLE,), judged.Start, transition.start_canary, (JUDGING,), "", "", ("RolloutStarted",)),
    Transition((IDLE,), judged.Wait, transition.rest, (), "", "strays to the active version"),
    # Judging, before the version is active, and Rolling
    Transition(UNDER_WAY, judged.Stop, transition.stop, (IDLE,), "", "", ("RolloutStopped",)),
    Transition(UNDER_WAY, judged.Pause, transition.pause, (), "", "", ("Paused",)),
    Transition(UNDER_WAY, judged.Wait, transition.wait),
    Transition(UNDER_WAY, judged.ThirdVersion, transition.return_third_version, (), "",
               "those with a third version to the active"),
    Transition((JUDGING,), judged.Proceed, transition.swap_canary, (), "", "canary pods to the new version"),
    Transition((JUDGING,), judged.Pass, transition.pass_canary, (ROLLING,), "", "next pods to the new version",
               ("CanaryPassed",)),
    Transition((ROLLING,), judged.Proceed, transition.swap_next_pods, (), "", "next pods to the new version"),
    Transition((ROLLING,), judged.Pass, transition.promote, (JUDGING, IDLE), "version active", "", ("Promoted",)),
    # Judging, once the version is active
    Transition((JUDGING,), judged.Watch, transition.rest, (), "", "strays to the active version"),
    Transition((JUDGING,), judged.Keep, transition.end_watch, (IDLE,)),
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
    asked = facts.roll.asked | dict.fromkeys(made.swaps, world.now)
    waits = judgement.reason if isinstance(judgement, (judged.Wait, judged.Pause)) else ""
    update = {"asked": asked, "waiting": waits, "paused": isinstance(judgement, judged.Pause)}
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
