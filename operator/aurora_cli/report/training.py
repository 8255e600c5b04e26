"""What training and measuring cost, and what speculation saves, as far as it is recorded. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from aurora_cli.report.report import Figure, Measurement, TrainedVersion, utc
from aurora_cli.report.stored_records import StoredRecords
from aurora_cli.speculator import Speculator
from aurora_cli.tables.plain_text import count


def trained_versions(
    records: StoredRecords, measurements: Mapping[int, Measurement], served: frozenset[int]
) -> tuple[TrainedVersion, ...]:
    """One entry for each registered version, by version."""
    return tuple(
        TrainedVersion(
            version=one.version,
            created=utc(one.created),
            learned_tokens=one.trained_tokens,
            step=records.checkpoints[one.version].step if one.version in records.checkpoints else None,
            held_out_accept_length=one.held_out_acceptance_length,
            verdict=measurements[one.version].verdict if one.version in measurements else None,
            served=one.version in served,
            measuring_seconds=measurements[one.version].seconds if one.version in measurements else None,
        )
        for one in records.registrations
    )


def training_figures(
    speculator: Speculator, records: StoredRecords, measurements: Sequence[Measurement]
) -> Iterator[Figure]:
    """The totals, each with what it counts.

    Args:
        measurements: all attempts.
    """
    status, trainer = speculator.status.training, records.trainer
    step = max(status.step, trainer.step if trainer else 0)
    tokens = max(status.trained_tokens, trainer.trained_tokens if trainer else 0)
    known = speculator.has_status or trainer is not None
    yield Figure("Optimizer steps", count(step) if known else "", "since the lineage began")
    yield Figure("Tokens learned", count(tokens) if known else "", "traced positions, each counted once")
    yield Figure("Steps a minute", status.steps_per_minute or "", "over the last minute or more of training")
    waiting = status.pending_shards
    yield Figure("Pending shards", "" if waiting is None else str(waiting), "a growing number: training falls behind")
    if records.registrations:
        moments = [one.created for one in records.registrations]
        seconds = (max(moments) - min(moments)).total_seconds()
        yield Figure("From first to last version", duration(seconds), "wall-clock time; includes idle time")
    if records.was_read:
        seconds = sum(one.seconds for one in measurements)
        note = f"attempts: {len(measurements)}, at {len({one.version for one in measurements})} versions"
        yield Figure("Time of measuring", duration(seconds), note)
    yield Figure(
        "Held by the trainer", status.devices or "", "devices that the trainer holds while it runs, busy or not"
    )
    estimate = "the engines' estimate over about the last day, lookup included; the plugin's own cost is not deducted"
    yield Figure("Saved by speculation", status.saved_devices or "", estimate)


def duration(seconds: float) -> str:
    """A length of time in its two largest units: ``45 s``, ``12 min``, ``3 h 20 min``, ``5 d 2 h``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours, days = minutes // 60, minutes // 1440
    if minutes < 60:
        return f"{minutes} min"
    if hours < 24:
        return f"{hours} h {minutes % 60} min" if minutes % 60 else f"{hours} h"
    return f"{days} d {hours % 24} h" if hours % 24 else f"{days} d"
