"""``speculation.json`` counts what each source proposed and what the target accepted of it, by position."""

from __future__ import annotations

from pathlib import Path

from aurora_runtime.engine.arms import OFF, Arm, Source
from aurora_runtime.serving.pod_files import PodFolder
from aurora_runtime.serving.speculation.lookup_index import Proposal
from aurora_runtime.serving.speculation.worker.policy import FixedArms
from aurora_runtime.serving.speculation.worker.round_report import RoundReport
from tests.unit.serving.speculation.worker.fake_requests import FakeRequest, a_round

DRAFT, LOOKUP, NONE = Source.DRAFT, Source.LOOKUP, Source.NONE


def test_counters_by_position_and_arm(tmp_path: Path) -> None:
    report = RoundReport(PodFolder(tmp_path), "boot", FixedArms(["off"]), longest=5)
    one, two, three = (FakeRequest(name) for name in ("one", "two", "three"))
    report.add(a_round([one, two], OFF), [0, 0])
    report.add(a_round([one, two], Arm(2, drafts=True)), [2, 0])
    mixed = a_round(
        [one, two, three],
        Arm(3, drafts=True),
        sources=(LOOKUP, DRAFT, NONE),
        proposals=[Proposal((7,), 2), Proposal(), Proposal()],
        explores=True,
    )
    report.add(mixed, [3, 1, 2])
    report.write()
    state = PodFolder(tmp_path).read_speculation_state()
    assert state is not None
    assert state.ok
    assert state.rounds_by_arm == {"off": 1, "draft-2": 1, "draft-3": 1}
    assert state.exploring_share == 1 / 3
    assert (state.lookup.proposed_at, state.lookup.accepted_at) == ((1,), (1,)), "filler tokens do not count"
    assert (state.draft.proposed_at, state.draft.accepted_at) == ((3, 3, 1), (2, 1))
    assert (state.lookup.requests, state.draft.requests) == (1, 2)


def test_a_request_counts_once_for_each_source(tmp_path: Path) -> None:
    report = RoundReport(PodFolder(tmp_path), "boot", FixedArms(["off"]), longest=5)
    req = FakeRequest("r")
    for _ in range(3):
        report.add(a_round([req], Arm(1, drafts=True)), [0])
    assert report.state().draft.requests == 1
    report.request_ended("r")
    report.add(a_round([req], Arm(1, drafts=True)), [0])
    assert report.state().draft.requests == 2


def test_a_round_after_a_requests_last_one_does_not_count_for_it(tmp_path: Path) -> None:
    """Under overlap scheduling it was launched before the request's end was known."""
    report = RoundReport(PodFolder(tmp_path), "boot", FixedArms(["off"]), longest=5)
    report.add(a_round([FakeRequest("r", ended=True)], Arm(1, drafts=True)), [1])
    assert report.state().draft.rounds == 0


def test_an_engine_without_rounds_reports_nothing(tmp_path: Path) -> None:
    state = RoundReport(PodFolder(tmp_path), "boot", FixedArms(["off"]), longest=5).state()
    assert (state.rounds_by_arm, state.exploring_share, state.draft.rounds) == ({}, 0, 0)
