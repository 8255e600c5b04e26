"""Rounds that are decided one round behind: answers are the same, and what is learnt is what was really proposed."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aurora_api.v1alpha1.draft import LookupScope
from aurora_runtime.engine.arms import Source
from aurora_runtime.serving.speculation.outlook import Decision, RequestOutlook
from aurora_runtime.serving.speculation.worker import engine_requirements
from aurora_runtime.serving.speculation.worker.behind import device_texts
from aurora_runtime.serving.speculation.worker.behind.device_texts import DeviceTexts
from aurora_runtime.serving.speculation.worker.behind.rounds_behind import SHORTEST_MATCH
from aurora_runtime.serving.speculation.worker.engine_requirements import BEHIND_VARIABLE, can_run_behind
from aurora_runtime.serving.speculation.worker.rounds import Round, RoundObserver
from tests.unit.serving.speculation.worker.controlled_engine import ARMS, ROWS, ControlledEngine, Schedule
from tests.unit.serving.speculation.worker.fake_engine import VOCABULARY

MANY_ARMS = st.lists(st.sampled_from(ARMS), min_size=1, max_size=8)
LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=ROWS)


def test_a_decision_knows_all_rounds_but_the_one_under_way() -> None:
    controlled = ControlledEngine(["off", "lookup-5"], Schedule.BEHIND)
    controlled.run([40])
    assert controlled.policy.known == [max(0, number - 1) for number in range(controlled.engine.rounds)]
    waiting = ControlledEngine(["off", "lookup-5"], Schedule.WAITS)
    waiting.run([40])
    assert waiting.policy.known == list(range(waiting.engine.rounds))


@given(arms=st.lists(st.sampled_from(["off", "lookup-2", "lookup-5"]), min_size=1, max_size=4), lengths=LENGTHS)
def test_lookup_proposes_on_the_device_what_it_proposes_on_the_host(arms: list[str], lengths: list[int]) -> None:
    """Without the draft, the same rounds then commit the same tokens."""
    engines = []
    for schedule in (Schedule.WAITS, Schedule.BEHIND):
        controlled = ControlledEngine(arms, schedule)
        # As on a GPU, where each round is told after its results were processed: both then know where answers ended.
        controlled.hooks._observer = RoundObserver(controlled.hooks._learning, rounds_late=1)
        controlled.run(lengths)
        engines.append(controlled)
    waiting, behind = engines
    assert behind.engine.rounds == waiting.engine.rounds
    for late, early in zip(behind.policy.observed, waiting.policy.observed, strict=False):
        assert (late[0].arm, late[2], late[4]) == (early[0].arm, early[2], early[4])
    matches = [{o.rid: o.lookup_match for o in early[1]} for early in waiting.policy.observed]
    for number, late in enumerate(behind.policy.observed[1:], start=1):
        for outlook in late[1]:
            known = matches[number - 1].get(outlook.rid, 0)
            assert outlook.lookup_match == max(known, SHORTEST_MATCH), "the match of the round before"


@given(arms=MANY_ARMS, lengths=LENGTHS, seed=st.integers(0, 99), retract_share=st.sampled_from([0.0, 0.1]))
def test_what_was_really_proposed_is_counted_and_every_round_is_observed_once(
    arms: list[str], lengths: list[int], seed: int, retract_share: float
) -> None:
    controlled = ControlledEngine(arms, Schedule.BEHIND, seed=seed, retract_share=retract_share)
    counted: list[Round] = []
    add = controlled.report.add

    def count(current: Round, accepted: Sequence[int]) -> None:
        counted.append(current)
        add(current, accepted)

    controlled.report.add = count  # type: ignore[method-assign]
    controlled.run(lengths)
    policy = controlled.policy
    for decided, current, observed, made in zip(policy.decisions, counted, policy.observed, policy.made, strict=False):
        decision, _, accepted, milliseconds, unplayed = observed
        assert (decision.arm, decision) == (decided.arm, current.decision)
        assert milliseconds in (None, 1.0), "the time until the next round began"
        for before, source, proposal, right, matching, own in zip(
            decided.sources, decision.sources, current.proposals, accepted, unplayed, made, strict=True
        ):
            if proposal.tokens and decision.arm.steps and before is not Source.DRAFT:
                assert source is Source.LOOKUP
                assert min(right, own) == min(matching, decision.arm.steps), "up to the answer's end"
            else:
                assert source is Source.DRAFT if before is Source.DRAFT else source is not Source.LOOKUP
                assert source is not Source.DRAFT or decision.arm.drafts
    assert len(counted) == len(policy.observed)
    assert len(policy.observed) >= len(policy.decisions) - 2
    if not retract_share:
        for row in range(len(lengths)):
            events = [event for event in policy.events if f"r{row}" in event]
            assert all(event[-1] != "ended" for event in events[:-1]), "an end is reported after the last round"


def test_a_round_is_timed_unless_something_else_began_before_the_next() -> None:
    controlled = ControlledEngine(["off"], Schedule.BEHIND)
    controlled.run([5, 5])
    times = [milliseconds for *_, milliseconds, _ in controlled.policy.observed]
    assert times[:3] == [1.0, 1.0, 1.0]
    late = ControlledEngine(["off"], Schedule.BEHIND, seed=3, retract_share=0.5)
    late.run([8, 8])
    assert None in [milliseconds for *_, milliseconds, _ in late.policy.observed], "a prefill was in between"


@given(arms=MANY_ARMS, lengths=LENGTHS, seed=st.integers(0, 99), retract_share=st.sampled_from([0.0, 0.1]))
def test_another_rank_with_the_same_decisions_runs_the_same_passes(
    arms: list[str], lengths: list[int], seed: int, retract_share: float
) -> None:
    first = ControlledEngine(arms, Schedule.BEHIND, seed=seed, retract_share=retract_share)
    first.run(lengths)
    second = ControlledEngine(["off"], Schedule.BEHIND, seed=seed, retract_share=retract_share)
    decisions = iter(first.policy.decisions)

    def agree(decision: Decision | None, requests: int, **_: bool) -> Decision:
        assert decision is None
        agreed = next(decisions)
        assert len(agreed.sources) == requests
        return agreed

    second.control.ranks = SimpleNamespace(decides=False, is_single=False, agree=agree, share=lambda _: b"1")
    second.run(lengths)
    assert (second.engine.rounds, second.engine.catch_ups) == (first.engine.rounds, first.engine.catch_ups)
    assert next(decisions, None) is None


def test_an_error_of_the_device_lookup_costs_proposals_of_a_single_rank_and_ends_one_of_several(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(device_texts, "propose", fail)
    controlled = ControlledEngine(["lookup-5", "union-3"], Schedule.BEHIND)
    [req] = controlled.run([30])
    assert len(req.output_ids) >= 30
    assert controlled.report.errors == 1, "lookup stays off after the first error"
    assert controlled.report.state().lookup.proposed == 0
    several = ControlledEngine(["lookup-5"], Schedule.BEHIND)
    several.control.ranks = SimpleNamespace(
        decides=True, is_single=False, agree=lambda decision, _, **__: decision, share=bytes
    )
    with pytest.raises(RuntimeError, match="several ranks"):
        several.run([30])


def test_a_round_of_the_former_draft_says_nothing_about_the_next_draft() -> None:
    controlled = ControlledEngine(["draft-3"], Schedule.BEHIND)
    choose, swapped_at = controlled.policy.choose, 5

    def swap(outlooks: Sequence[RequestOutlook]) -> Decision:
        if len(controlled.policy.decisions) == swapped_at - 1:
            controlled.version = "2"  # read before the next decision
        return choose(outlooks)

    controlled.policy.choose = swap  # type: ignore[method-assign]
    controlled.run([30])
    drafted = [Source.DRAFT in decision.sources for decision, *_ in controlled.policy.observed]
    assert controlled.policy.known[swapped_at] < swapped_at, "the round before the swap was under way"
    assert [number for number, one in enumerate(drafted) if not one] == [swapped_at - 1]


def test_a_request_that_outgrows_its_row_gets_no_more_proposals() -> None:
    controlled = ControlledEngine(["lookup-2"], Schedule.BEHIND, row_tokens=20)
    controlled.run([60])
    matches = [outlooks[0].lookup_match for _, outlooks, *_ in controlled.policy.observed]
    last = max(place for place, match in enumerate(matches) if match > SHORTEST_MATCH)
    assert 0 < last < len(matches) - 20


def test_a_text_with_placeholders_gets_valid_proposals() -> None:
    texts = DeviceTexts(1, 20, 3, VOCABULARY, "cpu", pytest.fail)
    assert proposed(texts, [7, 1 << 40, -5, 7, 1 << 41], 7) == [0, 7, 0]


def test_a_row_takes_the_text_of_the_request_that_has_it_now() -> None:
    texts = DeviceTexts(1, 20, 2, VOCABULARY, "cpu", pytest.fail)
    assert proposed(texts, [1, 2, 3, 4, 1], 2, rid="a") == [3, 4]
    assert proposed(texts, [5, 2, 9, 8, 5], 2, rid="b") == [9, 8]
    assert proposed(texts, [], 2, rid="b") == [9, 8], "its text was not copied again"
    texts.forget("b")
    assert proposed(texts, [5, 2, 6, 5], 2, rid="b") == [6, 5], "it was prefilled again"


def proposed(texts: DeviceTexts, prompt: list[int], last: int, rid: str = "r") -> Sequence[int]:
    """What lookup proposes to a request whose first round begins with the token ``last``."""
    req = SimpleNamespace(rid=rid, origin_input_ids=prompt, output_ids=[])
    batch = SimpleNamespace(
        req_pool_indices=torch.tensor([0]),
        seq_lens=torch.tensor([len(prompt)]),
        spec_info=SimpleNamespace(bonus_tokens=torch.tensor([last], dtype=torch.int32)),
    )
    tokens: list[int] = texts.round_begins([req], [0], batch).lookups.tokens[0].tolist()
    return tokens


@pytest.mark.parametrize(
    ("asked", "device", "overlaps", "scope", "expected"),
    [
        ("1", "cuda:0", True, LookupScope.REQUEST, True),
        ("", "cuda:0", True, LookupScope.REQUEST, False),
        ("1", "cpu", True, LookupScope.REQUEST, False),
        ("1", "cuda:0", False, LookupScope.REQUEST, False),
        ("1", "cuda:0", True, LookupScope.SPECULATOR, False),
    ],
)
def test_rounds_run_behind_where_a_person_asks_and_the_device_can_look_up_all_texts(
    monkeypatch: pytest.MonkeyPatch, asked: str, device: str, overlaps: bool, scope: LookupScope, expected: bool
) -> None:
    monkeypatch.setenv(BEHIND_VARIABLE, asked)
    monkeypatch.setattr(engine_requirements, "is_overlapping", lambda: overlaps)
    worker = SimpleNamespace(draft_worker=SimpleNamespace(device=device))
    assert can_run_behind(worker, scope) is expected


def test_where_sglang_waits_for_lengths_the_hooks_decide_with_the_last_rounds_tokens() -> None:
    controlled = ControlledEngine(["off"], Schedule.BEHIND)
    controlled.control.behind = None
    assert controlled.hooks.around_cpu_lengths(lambda _: True, ()) is True
    assert controlled.control.behind is None
