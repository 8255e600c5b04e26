"""What happens to the drafts, as short texts: for the plain lines, and for the view's line `now`.

Invariant: a text states one fact. A fact is told when it is new. Figures that change all the time are told once a
minute.
"""

from __future__ import annotations

from tests.demo.show.observation import Observation
from tests.demo.show.show_state import ShowState

REPEAT_SECONDS = 60.0


def activity(seen: Observation) -> str:
    """What happens to the most advanced draft at present, in a few words."""
    rollout, candidate = seen.rollout, seen.candidate
    if rollout.phase != "Idle":
        pods = f"{rollout.updated} of {rollout.total} pods"
        return f"rollout of version {_or_dash(rollout.version)}: {rollout.phase}, {pods}"
    if candidate is not None and candidate.phase == "Validating":
        return f"measuring version {candidate.version} against version {_or_dash(seen.version)}"
    trained = f"training: step {seen.training.step}"
    if seen.training.held_out_acceptance is not None:
        trained += f", held-out acceptance length {seen.training.held_out_acceptance:.2f}"
    return trained


def draft_events(before: Observation | None, after: Observation | None) -> list[str]:
    """Facts about the drafts and the requests that are new since `before`."""
    if after is None:
        return []
    old, lines = before or Observation(), []
    if after.version is not None and after.version != old.version:
        lines.append(f"version {after.version} is the active draft")
    candidate, former = after.candidate, old.candidate
    if candidate is not None and (
        former is None or (former.version, former.phase) != (candidate.version, candidate.phase)
    ):
        reason = f": {candidate.message}" if candidate.message and candidate.phase != "Validating" else ""
        lines.append(f"version {candidate.version} is {candidate.phase or 'a candidate'}{reason}")
    if after.rollout != old.rollout and after.rollout.phase != "Idle":
        lines.append(activity(after))
    if after.traffic.failed > old.traffic.failed:
        lines.append(f"requests failed: {after.traffic.failed} of {after.traffic.requests}")
    return lines


def figures(before: ShowState, before_now: float, after: ShowState, now: float) -> list[str]:
    """The service's figures, once a minute."""
    seen = after.observation
    first, second = before.elapsed_seconds(before_now), after.elapsed_seconds(now)
    if seen is None or int(first // REPEAT_SECONDS) == int(second // REPEAT_SECONDS):
        return []
    lines = [activity(seen)] if seen.rollout.phase == "Idle" else []
    if after.samples:
        lines.append(f"clients: {after.samples[-1].tokens_per_second:.1f} tokens/s, {seen.traffic.requests} requests")
    if seen.acceptance is not None:
        lines.append(f"version {_or_dash(seen.version)}: acceptance length {seen.acceptance:.2f}")
    if seen.against_off is not None:
        lines.append(f"the engines estimate {seen.against_off:.1f}x of the speed without speculation")
    if after.progress_to_candidate is not None and seen.stage == "learn":
        lines.append(f"next candidate: {after.learned_tokens:,} of {seen.training.publish_tokens:,} tokens learned")
    return lines


def _or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)
