"""``speculation.json`` counts what each source proposed and what was accepted of it, and averages the saved time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aurora_protocol.agent_api import MAX_SPEEDUP
from aurora_runtime.engine.arms import OFF, Arm, Source
from aurora_runtime.serving.pod_files import PodFolder
from aurora_runtime.serving.speculation.controller import FixedArms
from aurora_runtime.serving.speculation.lookup import Proposal
from aurora_runtime.serving.speculation.report import RoundReport, SavedTimeAverage
from aurora_runtime.serving.speculation.rounds import Outcome, Round
from tests.unit.serving.speculation.fake_requests import FakeRequest, a_round

DRAFT, LOOKUP, NONE = Source.DRAFT, Source.LOOKUP, Source.NONE
DAY = 86400


def a_report(folder: Path) -> RoundReport:
    return RoundReport(PodFolder(folder), "boot", FixedArms(["off"]))


def add(report: RoundReport, ended: Round, accepted: list[int], made: Sequence[int] = ()) -> None:
    report.add(ended, Outcome(ended.decision, ended.outlooks, accepted, None, (), made))


def test_counters_by_position_and_arm(tmp_path: Path) -> None:
    report = a_report(tmp_path)
    one, two, three = (FakeRequest(name) for name in ("one", "two", "three"))
    add(report, a_round([one, two], OFF), [0, 0])
    report.add_parked()
    add(report, a_round([one, two], Arm(2, drafts=True)), [2, 0])
    mixed = a_round(
        [one, two, three],
        Arm(3, drafts=True),
        sources=(LOOKUP, DRAFT, NONE),
        proposals=[Proposal((7,), 2), Proposal(), Proposal()],
    )
    add(report, mixed, [3, 1, 2])
    report.write()
    state = PodFolder(tmp_path).read_speculation_state()
    assert state is not None
    assert state.ok
    assert state.rounds_by_arm == {"off": 2, "draft-2": 1, "draft-3": 1}
    assert (state.lookup.proposed_at, state.lookup.accepted_at) == ((1,), (1,)), "filler tokens do not count"
    assert (state.draft.proposed_at, state.draft.accepted_at) == ((3, 3, 1), (2, 1))


def test_a_round_after_a_requests_last_one_does_not_count_for_it(tmp_path: Path) -> None:
    """Under overlap scheduling it was launched before the request's end was known."""
    report = a_report(tmp_path)
    add(report, a_round([FakeRequest("r")], Arm(1, drafts=True)), [1], [0])
    assert report.state().draft.proposed_at == ()


def after(*observations: tuple[float, float]) -> tuple[float, float]:
    """Share and observed seconds after observations of (seconds, total saved seconds)."""
    average = SavedTimeAverage()
    found = [average.observe(*one) for one in observations]
    assert found[0] is None
    assert found[-1] is not None
    return found[-1].share, found[-1].observed_seconds


def test_idle_time_counts_and_a_day_of_another_load_replaces_the_average() -> None:
    assert after((100, 7), (110, 12), (200, 12)) == pytest.approx((5 / 100, 100), rel=0.01)
    busy = [(float(t), t * 0.5) for t in range(0, 5 * DAY, 600)]
    total, end = busy[-1][1], busy[-1][0]
    idle = [(end + t, total) for t in range(600, 3 * DAY, 600)]
    assert after(*busy)[0] == pytest.approx(0.5)
    share, seconds = after(*busy, *idle)
    assert 0.01 < share < 0.05, "less than three times the memory later"
    assert seconds == pytest.approx(end + 3 * DAY, rel=0.01)


@given(st.lists(st.tuples(st.floats(0, 1e5), st.floats(-1e5, 1e9)), min_size=2, max_size=20))
def test_any_sequence_gives_a_share_within_its_limits(steps: list[tuple[float, float]]) -> None:
    average, now, total = SavedTimeAverage(), 0.0, 0.0
    for seconds, saved in steps:
        now, total = now + seconds, total + saved
        found = average.observe(now, total)
        assert found is None or -1 <= found.share <= MAX_SPEEDUP
