"""``kubectl aurora status``: many speculators in a table, or one in full. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from aurora_api.v1alpha1.annotations import ABORT_ANNOTATION, PROMOTE_ANNOTATION
from aurora_api.v1alpha1.conditions import Condition, ConditionStatus, ConditionType
from aurora_api.v1alpha1.status import (
    CandidatePhase,
    CandidateStatus,
    PodStatus,
    RolloutPhase,
    TrainingStatus,
    VersionStatus,
)
from aurora_cli.errors import Unreadable
from aurora_cli.speculator import Speculator
from aurora_cli.tables.plain_text import NONE, age, count, plain, table

_BAD_WHEN_TRUE = frozenset(
    {ConditionType.DEGRADED, ConditionType.NAME_TAKEN, ConditionType.INVALID_SPEC, ConditionType.UPGRADE_PENDING}
)
_MAY_BE_FALSE = frozenset({ConditionType.ROLLOUT_PROGRESSING, ConditionType.CANDIDATE_VALIDATED})
"""Conditions that are neither good nor bad when they are False."""
_CANDIDATE_STYLES = {
    CandidatePhase.VALIDATED: "good",
    CandidatePhase.REJECTED: "warning",
    CandidatePhase.INCONCLUSIVE: "warning",
    CandidatePhase.FAILED: "bad",
}
_GOOD_POD_STATES = frozenset({"Ready", "Measuring"})
_BUSY_POD_STATES = frozenset(
    {"Pending", "Starting", "Terminating", "Staging", "Swapping", "Draining", "Returning", "ContainerCreating"}
)


def overview(speculators: Sequence[Speculator], now: datetime, *, everywhere: bool) -> RenderableType:
    """One line for each speculator."""
    namespace = ("NAMESPACE",) if everywhere else ()
    columns = ("NAME", "READY", "REASON", "ACTIVE", "SPEEDUP", "ACCEPT-LEN", "EST-SPEEDUP", "UPDATED", "ROLLOUT")
    return table(
        *(*namespace, *columns, "CANDIDATE", "AGE"),
        rows=[
            (*((one.namespace,) if everywhere else ()), one.name, *_overview_row(one), age(one.created, now))
            for one in speculators
        ],
        last_wraps=False,
    )


def _overview_row(speculator: Speculator) -> Sequence[Any]:
    status, ready = speculator.status, speculator.condition(ConditionType.READY)
    candidate = status.candidate
    reason = ready.reason if ready else ("Unreadable" if speculator.fault else "NoStatus")
    return (
        plain(ready.status if ready else None, _style(ready) if ready else ""),
        plain("being deleted", "warning") if speculator.is_being_deleted else reason,
        speculator.active,
        status.active.speedup if status.active else None,
        status.accept_length,
        status.estimated_speedup,
        status.updated,
        status.rollout.phase if speculator.has_status else None,
        f"{candidate.version} {candidate.phase}" if candidate else None,
    )


def detail(speculator: Speculator, now: datetime) -> RenderableType:
    """Everything that the status says about one speculator."""
    parts: list[RenderableType] = [_heading(speculator, now), Text(""), _facts_table(speculator, now)]
    if speculator.status.pods:
        parts += [Text(""), _pods(speculator.status.pods)]
    if speculator.status.conditions:
        parts += [Text(""), _conditions(speculator.status.conditions, now)]
    return Group(*parts)


def watched_detail(speculator: Speculator, now: datetime) -> RenderableType:
    """The same for a screen that may cut off the end: what is wrong stands first, and what is well last."""
    status = speculator.status
    # Ready repeats the message of another condition, which comes after Ready and says more.
    wrong = {one.message or one.type: one for one in status.conditions if _style(one) == "bad"}.values()
    parts: list[RenderableType] = [_heading(speculator, now), *(_condition_line(one, now) for one in wrong)]
    parts += [Text(""), _facts_table(speculator, now)]
    if status.pods:
        parts += [Text(""), _pods(sorted(status.pods, key=lambda pod: pod.state in _GOOD_POD_STATES))]
    if others := [one for one in status.conditions if one not in wrong]:
        parts += [Text(""), _conditions(others, now)]
    return Group(*parts)


def _heading(speculator: Speculator, now: datetime) -> Text:
    ready = speculator.condition(ConditionType.READY)
    return Text.assemble(
        plain(speculator.name, "strong"),
        f" in {speculator.namespace}: ",
        plain(f"{'ready' if ready.status is ConditionStatus.TRUE else 'not ready'}, {ready.reason}", _style(ready))
        if ready
        else plain("no operator has written a status yet; run `kubectl aurora doctor`", "bad"),
        plain(f"; being deleted for {age(speculator.deleted, now)}" if speculator.is_being_deleted else "", "warning"),
    )


def _facts_table(speculator: Speculator, now: datetime) -> RenderableType:
    return table("", "", rows=list(_facts(speculator, now)))


def _facts(speculator: Speculator, now: datetime) -> Iterator[tuple[Any, Any]]:
    """Name and value of each line."""
    status = speculator.status
    if status.active is not None:
        yield plain("active", "strong"), _version(status.active, now)
    if status.previous is not None:
        yield plain("previous", "strong"), _version(status.previous, now)
    if status.candidate is not None:
        yield plain("candidate", "strong"), _candidate(status.candidate, now)
    if status.rollout.version is not None:
        yield plain("rollout", "strong"), _rollout(speculator, now)
    if decisions := list(_decisions(speculator)):
        yield plain("decided", "strong"), plain("; ".join(decisions), "warning")
    if traffic := list(_traffic(speculator)):
        yield plain("traffic", "strong"), ", ".join(traffic)
    if shape := _shape(speculator):
        yield plain("shape", "strong"), shape
    if speculator.has_status:
        yield plain("training", "strong"), ", ".join(_training(speculator))
        yield plain("worth", "strong"), _worth(speculator.status.training)
    if status.store_root:
        yield plain("store", "strong"), f"s3://{speculator.section('store').get('bucket', '')}/{status.store_root}"


def _version(version: VersionStatus, now: datetime) -> Text:
    text = Text.assemble(plain(f"version {version.version}", "strong"))
    figures = [
        f"{version.speedup} over no speculation" if version.speedup else "speedup not measured",
        *([f"{version.gain} over the version before"] if version.gain else []),
        *([f"since {age(version.since, now)}"] if version.since else []),
        *([f"measured on {version.speedup_source}"] if version.speedup_source else []),
    ]
    return text.append(", ").append(plain(", ".join(figures)))


def _candidate(candidate: CandidateStatus, now: datetime) -> Text:
    text = Text.assemble(
        plain(f"version {candidate.version}", "strong"),
        " ",
        plain(candidate.phase, _CANDIDATE_STYLES.get(candidate.phase, "")),
        plain(f", attempt {candidate.attempt}"),
        plain(f", since {age(candidate.since, now)}" if candidate.since else ""),
    )
    for given in (
        f"{candidate.gain} over the active version" if candidate.gain else "",
        f"on pod {candidate.pod}" if candidate.pod else "",
        f"version {candidate.waiting_version} waits for its roll" if candidate.waiting_version is not None else "",
    ):
        if given:
            text.append(", ").append(plain(given))
    return text.append(": ").append(plain(candidate.message)) if candidate.message else text


def _rollout(speculator: Speculator, now: datetime) -> Text:
    rollout = speculator.status.rollout
    style = {RolloutPhase.ROLLING_BACK: "bad", RolloutPhase.PAUSED: "warning", RolloutPhase.IDLE: "quiet"}
    text = Text.assemble(plain(rollout.phase, style.get(rollout.phase, "good")))
    if rollout.phase is RolloutPhase.IDLE:
        text.append(plain(f", the last roll was of version {rollout.version}", "quiet"))
    else:
        pods = f"version {rollout.version} on {rollout.updated} of {rollout.total} pods"
        text.append(", ").append(plain(f"{pods}, since {age(rollout.started, now)}"))
    if rollout.message:
        text.append(": ").append(plain(rollout.message))
    if rollout.phase is not RolloutPhase.IDLE and rollout.last_judgement:
        text.append("; last judgement: ").append(plain(rollout.last_judgement))
    return text


def _decisions(speculator: Speculator) -> Iterator[str]:
    """What a person decided and is still in force."""
    if speculator.paused:
        yield "rolls are paused"
    if speculator.pin is not None:
        yield f"version {speculator.pin} is pinned"
    for annotation, version in ((PROMOTE_ANNOTATION, speculator.promoted), (ABORT_ANNOTATION, speculator.aborted)):
        if version is not None:
            yield f"{annotation}={version}"
    if speculator.status.rejected:
        yield f"rejected: {', '.join(map(str, speculator.status.rejected))}"


def _traffic(speculator: Speculator) -> Iterator[str]:
    """Acceptance and estimated speedup. Without traffic, the status keeps the last values."""
    status = speculator.status
    if status.accept_length:
        yield f"acceptance length {status.accept_length} when there was traffic last"
    if status.training.held_out_accept_length:
        yield f"{status.training.held_out_accept_length} on held-out requests"
    if status.estimated_speedup:
        yield f"estimated speedup {status.estimated_speedup} when there was traffic last"


def _shape(speculator: Speculator) -> str:
    """What a verify round may propose, by the spec: which shape each round takes is in the agents' metrics."""
    try:
        draft = speculator.draft_spec()
    except Unreadable:
        return ""
    if draft.branching > 1:
        return f"Fixed: a tree of {draft.tokens_per_round} tokens, {draft.steps} deep, {draft.branching} wide"
    if not draft.adaptive:
        return f"Fixed: {draft.steps} tokens of the draft in each round"
    return f"Adaptive: up to {draft.steps} tokens of the draft in a round, lookup {draft.lookup}"


def _training(speculator: Speculator) -> Iterator[str]:
    training = speculator.status.training
    yield training.phase or "no report yet"
    yield f"step {training.step}"
    if training.steps_per_minute:
        yield f"{training.steps_per_minute} steps a minute"
    yield f"{count(training.trained_tokens)} tokens learned"
    if training.pending_shards is not None:
        yield f"{training.pending_shards} shards wait"
    if training.vocabulary_coverage:
        yield f"vocabulary coverage {training.vocabulary_coverage}"
    yield f"{count(speculator.status.traces)} tokens traced by the present pods"


def _worth(training: TrainingStatus) -> Text:
    """What speculation saves, and what training holds for it."""
    saved, held = training.saved_devices or "not known", training.devices or "not known, or suspended"
    return plain(f"saved by speculation: {saved}, held by the trainer: {held}")


def _pods(pods: Sequence[PodStatus]) -> RenderableType:
    return table(
        *("POD", "VERSION", "STATE", "ACCEPT-LEN", "WEIGHTS"),
        rows=[
            (
                pod.name,
                pod.version,
                plain(pod.state, _pod_style(pod.state)),
                pod.accept_length,
                (pod.checksum or "")[:12],
            )
            for pod in pods
        ],
        last_wraps=False,
    )


def _pod_style(state: str) -> str:
    if state in _GOOD_POD_STATES:
        return "good"
    return "warning" if state in _BUSY_POD_STATES else "bad"


def _condition_line(condition: Condition, now: datetime) -> Text:
    """A condition with its message over the whole width, which takes fewer lines than a column of a table."""
    text = f"{condition.type}={condition.status} {condition.reason} for {age(condition.last_transition_time, now)}"
    return plain(f"{text}: {condition.message}" if condition.message else text, "bad")


def _conditions(conditions: Sequence[Condition], now: datetime) -> RenderableType:
    return table(
        *("CONDITION", "STATUS", "REASON", "SINCE", "MESSAGE"),
        rows=[
            (one.type, plain(one.status, _style(one)), one.reason, age(one.last_transition_time, now), one.message)
            for one in conditions
        ],
    )


def _style(condition: Condition) -> str:
    if condition.status is ConditionStatus.UNKNOWN:
        return "quiet"
    true = condition.status is ConditionStatus.TRUE
    if condition.type in _BAD_WHEN_TRUE:
        return "bad" if true else "good"
    if not true and condition.type in _MAY_BE_FALSE:
        return "quiet"
    return "good" if true else "bad"


def history(speculator: Speculator, now: datetime) -> RenderableType:
    """The last decisions, oldest first."""
    if not speculator.status.history:
        return plain(f"nothing was decided about {speculator.name} yet")
    styles = {"Promoted": "good", "RolledBack": "bad", "Rejected": "warning"}
    return table(
        *("TIME", "AGE", "EVENT", "VERSION", "MESSAGE"),
        rows=[
            (
                f"{entry.time:%Y-%m-%d %H:%M:%S}",
                age(entry.time, now),
                plain(entry.event, styles.get(entry.event, "")),
                entry.version,
                entry.message or NONE,
            )
            for entry in speculator.status.history
        ],
    )
