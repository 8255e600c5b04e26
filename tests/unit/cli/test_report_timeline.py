"""The report tells each decision once, as what it was, from the channel's records and the status' history."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from aurora_api.v1alpha1.status import HistoryEntry
from aurora_cli.report import timeline
from aurora_cli.report.builder import build
from aurora_cli.report.report import DecisionKind
from aurora_operator.observe.observed import UserRequests
from aurora_protocol.draft_records import ChannelReason
from tests.unit.cli.report_example import END, example, records
from tests.unit.operator.worlds import channel, made, observed, status, store

RECORDS = records()


def test_a_rollback_is_about_the_version_that_was_taken_away() -> None:
    found = timeline.decisions(RECORDS.channel, ())
    assert [one.version for one in found if one.kind is DecisionKind.ROLLED_BACK] == [6]
    refused = channel(2, epoch=3, rejected=(5,)).model_copy(update={"reason": ChannelReason.REFUSED})
    assert [one.version for one in timeline.decisions([channel(2, epoch=2), refused], ())] == [2, 5]


def test_a_decision_that_both_sources_know_is_told_once() -> None:
    record = next(one for one in RECORDS.channel if one.reason is ChannelReason.PROMOTED)
    entry = HistoryEntry(time=record.created + timedelta(minutes=1), event="Promoted", version=record.active)
    later = entry.model_copy(update={"time": record.created + timedelta(hours=1)})
    assert len(timeline.decisions([record], [entry])) == 1
    assert len(timeline.decisions([record], [later])) == 2


@pytest.mark.parametrize("kept", [True, False])
def test_a_roll_that_ended_before_its_promotion_is_one_rollback_even_after_the_status_forgot_it(kept: bool) -> None:
    refused = channel(2, epoch=3, rejected=(5,)).model_copy(
        update={"reason": ChannelReason.REFUSED, "message": "version 5 was aborted by a person"}
    )
    entry = HistoryEntry(time=refused.created, event="RolledBack", version=5, message=refused.message)
    (found,) = timeline.decisions([refused], [entry] if kept else [])
    assert (found.kind, found.event, found.version) == (DecisionKind.ROLLED_BACK, "RolledBack", 5)
    report = build(example(), replace(RECORDS, channel=(*RECORDS.channel, refused)), END)
    assert "and 2 rolled back" in [figure.note for figure in report.figures]


def test_a_candidate_that_the_operator_rejects_for_a_person_is_no_rollback() -> None:
    world = observed(store=store(0, 1))
    refused = made(replace(world, status=status(world), user_requests=UserRequests(abort=1))).advance
    assert refused is not None
    assert refused.message == timeline.ABORTED_CANDIDATE
    (found,) = timeline.decisions([refused], ())
    assert (found.kind, found.event, found.version) == (DecisionKind.REJECTED, "Rejected", 1)
