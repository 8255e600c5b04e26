"""What the status and the Events say about erased tags, and whether a trainer must run to erase one. Pure.

The trainer erases and reports. A tag is named by its hash only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final

from aurora_api.v1alpha1.status import SpeculatorStatus, TagErasureStatus
from aurora_operator.observe.observed import Observed
from aurora_operator.plan.actions import EventNote
from aurora_protocol.training_records import TrainerStatus

VERSIONS_NAMED: Final = 20
"""Most versions that the status names for one tag."""


def waits_for_erasure(observed: Observed) -> bool:
    """Whether a tag is to be erased about which there is no report yet. Also a trainer at rest must then run."""
    record = observed.store.trainer
    reported = {report.tag for report in (record.erasures if record else observed.status.training.erasures)}
    return not set(observed.spec.training.erase_tags) <= reported


def erasures(record: TrainerStatus, listed: Collection[str]) -> list[TagErasureStatus]:
    """The last report about each of the ``listed`` tags in the trainer's record, for the status.

    Nobody signs the record, so reports about other tags do not count. Each report becomes an Event.
    """
    reports = {report.tag: report for report in record.erasures if report.tag in listed}
    return [
        TagErasureStatus(
            tag=report.tag,
            number=report.number,
            traces_removed=report.traces_removed,
            shards_rewritten=report.shards_rewritten,
            shards_scanned=report.shards_scanned,
            remaining_traces=report.remaining_traces,
            versions=list(report.versions[-VERSIONS_NAMED:]),
            completed=report.completed,
        )
        for report in reports.values()
    ]


def erasure_notes(old: SpeculatorStatus, new: SpeculatorStatus) -> Iterator[EventNote]:
    """One Event for each new report."""
    known = {(each.tag, each.number) for each in old.training.erasures}
    for each in new.training.erasures:
        if (each.tag, each.number) in known:
            continue
        text = (
            f"Erased the tag {each.tag}: removed {each.traces_removed} traces from {each.shards_rewritten} shards;"
            f" {each.remaining_traces} remain in {each.shards_scanned} scanned shards"
        )
        if each.versions:
            text += f"; versions {', '.join(map(str, each.versions))} and later ones may have learned from them"
        yield EventNote("TagErased", text, warning=each.remaining_traces > 0)
