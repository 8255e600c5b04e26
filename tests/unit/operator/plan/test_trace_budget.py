"""Each pod gets its part of ``capture.tokensPerMinute``, which no restart brings."""

from __future__ import annotations

from dataclasses import replace

from aurora_api.v1alpha1.status import SpeculatorStatus, VersionStatus
from aurora_operator.observe.observed import Observed, PodView, StoreView
from aurora_protocol.agent_api import TraceBudget
from tests.unit.operator.worlds import agent, made, observed, pod, spec

UNORDERED = 1
"""A budget that no test orders."""


def _pod(name: str, tokens: int, version: int = 1) -> PodView:
    return pod(name, version, agent=agent(name, version, trace_budget=TraceBudget(tokens_per_minute=tokens)))


def limits(seen: Observed) -> dict[str, int]:
    return {limit.pod: limit.budget.tokens_per_minute for limit in made(seen).trace_limits}


def traced(tokens: int, replicas: int = 2) -> Observed:
    given = spec(serving={"replicas": replicas}, capture={"tokensPerMinute": tokens})
    pods = tuple(_pod(name, UNORDERED) for name in ("chat-a", "chat-b"))
    return observed(spec=given, pods=pods, status=SpeculatorStatus(active=VersionStatus(version=1)))


def test_the_wanted_pods_share_the_budget() -> None:
    assert limits(traced(1000)) == {"chat-a": 500, "chat-b": 500}
    assert limits(traced(1000, replicas=3)) == {"chat-a": 334, "chat-b": 334}
    assert limits(traced(0)) == {"chat-a": 0, "chat-b": 0}


def test_until_a_first_draft_has_passed_ten_times_the_budget_is_traced() -> None:
    for status in (SpeculatorStatus(), SpeculatorStatus(active=VersionStatus(version=0))):
        assert limits(replace(traced(1000), status=status)) == {"chat-a": 5000, "chat-b": 5000}


def test_a_store_that_is_away_changes_no_budget() -> None:
    away = replace(traced(1000), store=StoreView(reason="Unreachable", error="no route"))
    assert limits(away) == {"chat-a": 500, "chat-b": 500}


def test_an_order_that_is_under_way_is_looked_at_soon() -> None:
    seen = observed(spec=traced(1000).spec)
    for tokens, moving in ((5000, False), (500, True)):
        pods = (_pod("chat-a", 5000, 0), _pod("chat-b", tokens, 0))
        assert made(replace(seen, pods=pods)).moving is moving


def test_only_pods_with_another_part_are_asked() -> None:
    seen = traced(1000)
    silent, of_a_former_version = pod("chat-b", 1, agent=None), pod("chat-c", 1)
    assert limits(replace(seen, pods=(_pod("chat-a", 500), silent, of_a_former_version))) == {}
