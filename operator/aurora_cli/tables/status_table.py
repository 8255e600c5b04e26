"""``kubectl aurora status`` and ``history``: many speculators in a table, one in full, and its last decisions. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.text import Text

from aurora_api.v1alpha1.annotations import ABORT_ANNOTATION
from aurora_api.v1alpha1.conditions import Condition, ConditionStatus, ConditionType
from aurora_api.v1alpha1.status import CandidatePhase, CandidateStatus, PodStatus, RolloutPhase, VersionStatus
from aurora_cli.speculator import Speculator
from aurora_cli.tables.plain_text import age, count, plain, table

_CANDIDATE_STYLES: Final = {
    CandidatePhase.VALIDATED: "good",
    CandidatePhase.REJECTED: "warning",
    CandidatePhase.INCONCLUSIVE: "warning",
    CandidatePhase.FAILED: "bad",
}
_EVENT_STYLES: Final = {"Promoted": "good", "RolledBack": "bad", "Rejected": "warning"}
_BAD_POD_STATES: Final = ("Failed", "Unreachable", "Error", "BackOff")
"""Parts of the states of pods in trouble."""
Row = tuple[Text, Text]


def overview(speculators: Sequence[Speculator], *, everywhere: bool) -> RenderableType:
    """One line for each speculator, in 80 columns. ``kubectl get -o wide`` has more."""
    namespace = ("NAMESPACE",) if everywhere else ()
    return table(
        *(*namespace, "NAME", "READY", "REASON", "ACTIVE", "SPEEDUP", "UPDATED", "ROLLOUT", "CANDIDATE"),
        rows=[(*((one.namespace,) if everywhere else ()), one.name, *_overview_row(one)) for one in speculators],
    )


def _overview_row(one: Speculator) -> Sequence[Any]:
    status, ready, candidate = one.status, one.condition(ConditionType.READY), one.status.candidate
    reason = ready.reason if ready else ("Unreadable" if one.fault else "NoStatus")
    return (
        plain(ready.status, _style(ready)) if ready else None,
        plain("being deleted", "warning") if one.deleted else reason,
        one.active,
        (status.active.speedup or "").partition(" ")[0] if status.active else None,
        status.updated,
        status.rollout.phase if one.has_status else None,
        f"{candidate.version} {candidate.phase}" if candidate else None,
    )


def detail(one: Speculator, now: datetime) -> RenderableType:
    """Everything that the status says about one speculator."""
    parts: list[RenderableType] = [_heading(one, now), Text(""), table("", "", rows=list(_facts(one, now)))]
    if one.status.pods:
        parts += [Text(""), _pods(one.status.pods)]
    if one.status.conditions:
        parts += [Text(""), table("", "", rows=[_condition(each, now) for each in one.status.conditions])]
    return Group(*parts)


def _heading(one: Speculator, now: datetime) -> Text:
    ready = one.condition(ConditionType.READY)
    text = Text.assemble(plain(one.name, "strong"), f" in {one.namespace}: ")
    if ready is None:
        return text.append_text(plain("no operator has written a status yet; run `kubectl aurora doctor`", "bad"))
    word = "ready" if ready.status is ConditionStatus.TRUE else "not ready"
    text.append_text(plain(f"{word}, {ready.reason}", _style(ready)))
    if one.deleted:
        text.append_text(plain(f"; being deleted for {age(one.deleted, now)}", "warning"))
    return text


def _facts(one: Speculator, now: datetime) -> Iterator[Row]:
    """Name and value of each line."""
    status = one.status
    if status.active is not None:
        yield _row("active", ", ".join(_version(status.active, now)))
    if status.previous is not None:
        yield _row("previous", f"version {status.previous.version}")
    if status.candidate is not None:
        style = _CANDIDATE_STYLES.get(status.candidate.phase, "")
        yield _row("candidate", ", ".join(_candidate(status.candidate, now)), style)
    if status.rollout.version is not None:
        yield _row(
            "rollout", "; ".join(_rollout(one, now)), "quiet" if status.rollout.phase is RolloutPhase.IDLE else "good"
        )
    if decisions := "; ".join(_decisions(one)):
        yield _row("decided", decisions, "warning")
    if traffic := ", ".join(_traffic(one)):
        yield _row("traffic", traffic)
    if one.has_status:
        yield _row("training", ", ".join(_training(one)))
        saved, held = status.training.saved_devices, status.training.devices
        yield _row("worth", f"saved by speculation: {saved or 'not known'}, held by the trainer: {held or 'not known'}")
    if status.store_root:
        yield _row("store", f"s3://{one.section('store').get('bucket', '')}/{status.store_root}")


def _row(name: str, value: str, style: str = "") -> Row:
    return plain(name, "strong"), plain(value, style)


def _version(version: VersionStatus, now: datetime) -> Iterator[str]:
    yield f"version {version.version}"
    yield f"{version.speedup} over no speculation" if version.speedup else "speedup not measured"
    if version.gain:
        yield f"{version.gain} over the version before"
    if version.since:
        yield f"since {age(version.since, now)}"


def _candidate(candidate: CandidateStatus, now: datetime) -> Iterator[str]:
    yield f"version {candidate.version} {candidate.phase}"
    yield f"attempt {candidate.attempt}"
    if candidate.since:
        yield f"since {age(candidate.since, now)}"
    if candidate.gain:
        yield f"{candidate.gain} over the active version"
    if candidate.pod:
        yield f"on pod {candidate.pod}"
    if candidate.message:
        yield candidate.message


def _rollout(one: Speculator, now: datetime) -> Iterator[str]:
    rollout = one.status.rollout
    if rollout.phase is RolloutPhase.IDLE:
        yield f"{rollout.phase}, the last roll was of version {rollout.version}"
    else:
        pods = f"version {rollout.version} on {rollout.updated} of {rollout.total} pods"
        yield f"{rollout.phase}, {pods}, since {age(rollout.started, now)}"
    if rollout.message:
        yield rollout.message
    if rollout.waiting:
        yield rollout.waiting
    if rollout.phase is not RolloutPhase.IDLE and rollout.last_judgement:
        yield f"last judgement: {rollout.last_judgement}"


def _decisions(one: Speculator) -> Iterator[str]:
    """What a person decided and is still in force."""
    if one.paused:
        yield "rolls are paused"
    if one.pin is not None:
        yield f"version {one.pin} is pinned"
    if one.aborted is not None:
        yield f"{ABORT_ANNOTATION}={one.aborted}"
    if one.status.rejected:
        yield f"rejected: {', '.join(map(str, one.status.rejected))}"


def _traffic(one: Speculator) -> Iterator[str]:
    """Acceptance and estimated speedup. Without traffic, the status keeps the last values."""
    status = one.status
    if status.accept_length:
        yield f"acceptance length {status.accept_length} when there was traffic last"
    if status.training.held_out_accept_length:
        yield f"{status.training.held_out_accept_length} on held-out requests"
    if status.estimated_speedup:
        yield f"estimated speedup {status.estimated_speedup}"


def _training(one: Speculator) -> Iterator[str]:
    training = one.status.training
    yield training.phase or "no report yet"
    yield f"step {training.step}"
    yield f"{count(training.trained_tokens)} tokens learned"


def _pods(pods: Sequence[PodStatus]) -> RenderableType:
    rows = [(pod.name, pod.version, plain(pod.state, _pod_style(pod.state)), (pod.checksum or "")[:12]) for pod in pods]
    return table("POD", "VERSION", "STATE", "WEIGHTS", rows=rows, last_wraps=False)


def _pod_style(state: str) -> str:
    if any(part in state for part in _BAD_POD_STATES):
        return "bad"
    return "good" if state == "Ready" else ""


def _condition(condition: Condition, now: datetime) -> Row:
    """A condition with its message over almost the whole width, which takes fewer lines than a column of a table."""
    text = f"{condition.status} {condition.reason}, {age(condition.last_transition_time, now)}"
    message = f": {condition.message}" if condition.message else ""
    return plain(condition.type, "strong"), plain(f"{text}{message}", _style(condition))


def _style(condition: Condition) -> str:
    if condition.type == ConditionType.RECONCILING:
        return "quiet"
    good = ConditionStatus.FALSE if condition.type == ConditionType.STALLED else ConditionStatus.TRUE
    return "good" if condition.status is good else "bad"


def history(one: Speculator) -> RenderableType:
    """The last decisions, oldest first."""
    if not one.status.history:
        return plain(f"nothing was decided about {one.name} yet")
    return table(
        *("TIME (UTC)", "EVENT", "VERSION", "MESSAGE"),
        rows=[
            (
                f"{entry.time:%Y-%m-%d %H:%M}",
                plain(entry.event, _EVENT_STYLES.get(entry.event, "")),
                f"{entry.version} (expired)" if one.has_expired(entry.version) else entry.version,
                entry.message,
            )
            for entry in one.status.history
        ],
    )
