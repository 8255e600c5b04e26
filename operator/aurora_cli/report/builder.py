"""Builds a report from a speculator and its stored records. Pure.

Invariant: no figure is invented. ``Report.unknown`` has a sentence for each fact that no record holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from aurora_api.v1alpha1.conditions import ConditionStatus, ConditionType
from aurora_cli.report import timeline, traffic
from aurora_cli.report.measurements import measurement, version_speeds
from aurora_cli.report.report import AcceptancePoint, Activation, DecisionKind, Figure, Report, Traffic, utc
from aurora_cli.report.stored_records import StoredRecords
from aurora_cli.report.training import trained_versions, training_figures
from aurora_cli.speculator import Speculator


def build(speculator: Speculator, records: StoredRecords, now: datetime) -> Report:
    """The report of one speculator at ``now``."""
    measurements = tuple(measurement(one) for one in records.evidence)
    earlier = tuple(measurement(one) for one in records.earlier_evidence)
    served = timeline.served_spans(records.channel, now)
    decisions = timeline.decisions(records.channel, speculator.status.history)
    learned = traffic.learned_at(_times_of_learning(records))
    active_since = ((version, learned(time)) for version, time in timeline.activations(records.channel))
    by_version = {one.version: one for one in measurements}
    live = traffic.live_acceptance(records.shards, learned)
    found = traffic.traffic(records.shards)
    rolled_back = sum(one.kind is DecisionKind.ROLLED_BACK for one in decisions)
    promoted = sum(one.kind is DecisionKind.PROMOTED for one in decisions)
    return Report(
        name=speculator.name,
        namespace=speculator.namespace,
        target=str(speculator.section("target").get("model", "")),
        made=now,
        ready=_ready(speculator),
        figures=(
            *_speed_figures(speculator),
            _newest(records),
            Figure("Promotions", str(promoted) if decisions else "", f"and {rolled_back} rolled back"),
        ),
        measurements=measurements,
        earlier=earlier,
        speeds=version_speeds(measurements),
        held_out=tuple(_held_out(records)),
        live=live,
        activations=tuple(Activation(version, tokens) for version, tokens in active_since if tokens is not None),
        traffic=found,
        decisions=decisions,
        served=served,
        versions=trained_versions(records, by_version, frozenset(span.version for span in served)),
        training=tuple(training_figures(speculator, records, (*measurements, *earlier))),
        coverage=_coverage(speculator, records),
        unknown=tuple(_unknown(speculator, records, found)),
    )


def _ready(speculator: Speculator) -> str:
    ready = speculator.condition(ConditionType.READY)
    if ready is None:
        return "No operator has written a status yet"
    return f"{'Ready' if ready.status is ConditionStatus.TRUE else 'Not ready'}: {ready.reason}"


def _speed_figures(speculator: Speculator) -> Iterator[Figure]:
    status, active = speculator.status, speculator.status.active
    source = f"version {active.version}, measured" if active else ""
    if active and active.speedup_source:
        source = f"{source} on {active.speedup_source}"
    yield Figure("Speedup over off", (active.speedup if active else None) or "", source)
    yield Figure("Gain", (active.gain if active else None) or "", "over the version that was active before")
    estimate = (
        "the engines' own estimate over their rounds without proposals, about the last minute with traffic; near 1 it"
        " may hide a loss of 4 to 13 %"
    )
    yield Figure("Estimated speedup", status.estimated_speedup or "", estimate)
    acceptance = "answer tokens per verify round, about the last minute with traffic"
    yield Figure("Live acceptance", status.accept_length or "", acceptance)
    held_out = status.training.held_out_accept_length or ""
    yield Figure("Held-out acceptance", held_out, "of the newest draft, simulated on held-out requests")
    yield Figure("Pods up to date", status.updated, "ready pods with the version they should serve")


def _newest(records: StoredRecords) -> Figure:
    if not records.registrations:
        return Figure("Newest version", "")
    newest = records.registrations[-1]
    return Figure("Newest version", str(newest.version), f"registered {utc(newest.created):%Y-%m-%d %H:%M} UTC")


def _times_of_learning(records: StoredRecords) -> list[tuple[datetime, int]]:
    times = [(one.created, one.trained_tokens) for one in records.registrations]
    if records.trainer is not None and records.trainer.lineage is not None:
        times.append((records.trainer.updated, records.trainer.trained_tokens))
    return times


def _held_out(records: StoredRecords) -> Iterator[AcceptancePoint]:
    trainer = records.trainer
    for one in records.registrations:
        yield from _point(one.trained_tokens, one.held_out_acceptance_length)
    if trainer is not None and trainer.lineage is not None:
        yield from _point(trainer.trained_tokens, trainer.held_out_acceptance_length)


def _point(tokens: int, length: float | None) -> Iterator[AcceptancePoint]:
    """Nothing for a length that is not known, or that cannot be one."""
    if length is not None and 1 <= length <= traffic.MAX_ACCEPT_LENGTH:
        yield AcceptancePoint(float(tokens), length)


def _coverage(speculator: Speculator, records: StoredRecords) -> float | None:
    if records.trainer is not None and records.trainer.vocabulary_coverage is not None:
        return records.trainer.vocabulary_coverage
    try:
        value = float(speculator.status.training.vocabulary_coverage or "")
    except ValueError:
        return None
    return value if 0 <= value <= 1 else None


def _unknown(speculator: Speculator, records: StoredRecords, found: Traffic) -> Iterator[str]:
    if not records.was_read:
        yield "The store was not read, so this report has only what the status says: no charts of versions or traffic."
        yield "Decisions before the last 20 are missing, because the status keeps no more."
        return
    if not speculator.has_status:
        yield "No operator has written a status yet."
    yield (
        "The arm that all requests of a batch shared is not stored. A shard counts the rounds of each request, by who"
        " proposed for it and how many tokens. The agents' metrics count a batch's rounds by arm"
        " (aurora_agent_decode_rounds_total)."
    )
    if found.without_shapes:
        yield (
            f"{found.without_shapes} of {found.shards} shards that were read do not say which shapes their rounds had:"
            " an older version wrote or changed them. Charts of shapes leave them out."
        )
    yield (
        "Live tokens per second are not stored. Speeds on this page are those of measurements, with the same prompts"
        " for each arm."
    )
    yield "Vocabulary coverage is stored as its newest figure only, so there is no chart of it."
    yield "Seconds that devices were busy, energy and money are not recorded."
    yield (
        "Live acceptance comes from the shards that are still stored. Old shards are deleted, and with"
        " capture.sampleRatio below 1 a part of the traffic is never traced."
    )
    yield "The report checks no signature of a record: the key belongs to the operator."
    yield from records.left_out
