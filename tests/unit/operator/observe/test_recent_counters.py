"""The recent counters of engines: what is kept, and which of the draft's tokens they tell."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from aurora_operator.observe.observed import AcceptedTokens, PodView
from aurora_operator.observe.recent_counters import CounterHistory
from aurora_protocol.agent_api import DraftCounters, LiveCounters
from tests.unit.operator.worlds import NOW, agent, pod


def counting(proposed_at: tuple[int, ...], accepted_at: tuple[int, ...], boot: str = "b1") -> PodView:
    draft = DraftCounters(requests=1, proposed_at=proposed_at, accepted_at=accepted_at)
    live = LiveCounters(proposed=sum(proposed_at), accepted=sum(accepted_at), draft=draft)
    return pod("chat-a", 0, agent=agent("chat-a", 0, boot=boot, live=live))


def test_the_draft_is_judged_by_its_first_tokens_whatever_steps_the_engine_chooses() -> None:
    history = CounterHistory()
    history.update([counting((100, 50), (80, 30))], NOW)
    later = history.update([counting((200, 50), (160, 30))], NOW + timedelta(seconds=30))
    assert later["chat-a"].first_tokens == AcceptedTokens(100, 80), "the oldest within the window"
    restarted = history.update([counting((7, 2), (), boot="b2")], NOW + timedelta(seconds=40))
    assert restarted["chat-a"].first_tokens == AcceptedTokens(7, 0)


def test_an_engine_that_counts_no_positions_tells_nothing_about_first_tokens() -> None:
    fixed = replace(counting((), ()), agent=agent("chat-a", 0, live=LiveCounters(proposed=300, accepted=100)))
    for view in (fixed, counting((), ())):
        assert CounterHistory().update([view], NOW)["chat-a"].first_tokens == AcceptedTokens()
