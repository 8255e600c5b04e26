"""The state of the show: a value from which the live view and the plain lines are made.

Each function returns a new state. The thread that draws therefore never sees a state that is half changed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tests.demo.handover import Handover
from tests.demo.show.observation import Observation
from tests.demo.stage_clock import StageClock, StageState
from tests.demo.stages import STAGES

SAMPLE_SECONDS = 15.0
"""The traffic of one sample. Shorter ones would show the noise of single answers."""
LOOP_STAGES = ("learn", "measure", "roll")
"""The stages that a draft goes through, and through which the next draft goes again if it is rejected."""


@dataclass(frozen=True)
class Sample:
    """The service over one stretch of traffic."""

    seconds: float
    """End of the stretch, since the traffic began."""
    tokens_per_second: float
    """Answer tokens that clients received, all clients together."""
    acceptance: float | None
    against_off: float | None


@dataclass(frozen=True)
class ShowState:
    """Everything that the show knows."""

    clock: StageClock
    started: float
    """When the demo began, on the clock of time.monotonic()."""
    observation: Observation | None = None
    samples: tuple[Sample, ...] = ()
    answer_tokens_sampled: int = 0
    """Answer tokens of all samples so far."""
    trained_before: int = 0
    """Tokens that the trainer had learned from when the newest candidate was first seen."""

    @property
    def progress_to_candidate(self) -> float | None:
        """The share of the way to the next candidate, from 0 to 1. None: nothing is known of the training."""
        if self.observation is None or not self.observation.training.publish_tokens:
            return None
        return min(1.0, self.learned_tokens / self.observation.training.publish_tokens)

    @property
    def learned_tokens(self) -> int:
        """Tokens that the trainer learned from since the newest candidate was first seen."""
        return max(0, self.observation.training.trained_tokens - self.trained_before) if self.observation else 0

    def elapsed_seconds(self, now: float) -> float:
        return max(0.0, now - self.started)

    def with_clock(self, clock: StageClock) -> ShowState:
        return replace(self, clock=clock)


def first_state(handover: Handover) -> ShowState:
    """The state at the demo's beginning."""
    keys = [stage.key for stage in STAGES if stage.key != "bootstrap"]
    if handover.packages_seconds is None:
        keys.remove("packages")
    clock = StageClock.of(keys)
    if handover.packages_seconds is not None:
        clock = clock.start("packages", 0.0).finish("packages", handover.packages_seconds)
    if handover.kubernetes_since is not None:
        clock = clock.start("kubernetes", handover.kubernetes_since)
    return ShowState(clock, handover.started)


def with_observation(state: ShowState, observation: Observation, now: float) -> ShowState:
    """Take in a new look at the service: its figures, and the stage that the draft is in."""
    return replace(
        _with_sample(state, observation),
        clock=_moved(state.clock, observation.stage, now),
        observation=observation,
        trained_before=_trained_before(state, observation),
    )


def with_loop_done(state: ShowState, now: float) -> ShowState:
    """A learned draft serves on every pod: all stages of the loop are done."""
    clock = state.clock
    for key in LOOP_STAGES:
        clock = clock.finish(key, now)
    return replace(state, clock=clock)


def _moved(clock: StageClock, stage: str, now: float) -> StageClock:
    """Let `stage` run. Stages before it are done, and stages after it wait."""
    position = LOOP_STAGES.index(stage)
    for key in LOOP_STAGES[:position]:
        if clock[key].state is not StageState.DONE:
            clock = clock.finish(key, now)
    for key in LOOP_STAGES[position + 1 :]:
        clock = clock.pause(key, now)
    return clock.start(stage, now)


def _trained_before(state: ShowState, observation: Observation) -> int:
    former = state.observation.candidate if state.observation else None
    newest = observation.candidate
    is_new = newest is not None and (former is None or newest.version != former.version)
    return observation.training.trained_tokens if is_new else state.trained_before


def _with_sample(state: ShowState, observation: Observation) -> ShowState:
    """Add a sample if enough traffic has passed since the last one."""
    traffic = observation.traffic
    seconds = traffic.seconds - (state.samples[-1].seconds if state.samples else 0.0)
    if seconds < SAMPLE_SECONDS:
        return state
    tokens = max(0, traffic.answer_tokens - state.answer_tokens_sampled)
    sample = Sample(traffic.seconds, tokens / seconds, observation.acceptance, observation.against_off)
    return replace(
        state,
        samples=(*state.samples, sample),
        answer_tokens_sampled=max(state.answer_tokens_sampled, traffic.answer_tokens),
    )
