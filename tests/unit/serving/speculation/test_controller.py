from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aurora_runtime.engine.arms import OFF, Arm, Source, arms_within
from aurora_runtime.serving.speculation.controller import (
    CANNOT_DRAFT,
    Controller,
    ControllerSettings,
    Decision,
    RequestOutlook,
)
from tests.example_count import example_count

ARMS = arms_within(draft_steps=5, lookup_steps=7)
NO_MATCH = RequestOutlook("a", lookup_match=0, lookup_length=0, pending=0)
MATCH = RequestOutlook("a", lookup_match=8, lookup_length=7, pending=0)


def controller(arms: tuple[Arm, ...] = ARMS, seed: int = 7) -> Controller:
    return Controller(arms, ControllerSettings(), random.Random(seed))  # noqa: S311 - no secret


def milliseconds(arm: Arm, batch_size: int) -> float:
    return 20 + 0.8 * arm.steps * batch_size + (1.6 * arm.steps if arm.drafts else 0)


def play(c: Controller, outlook: RequestOutlook, rounds: int, lookup: int = 0, draft: int = 0) -> list[Decision]:
    """Rounds of one request, of whose proposals ``lookup`` or ``draft`` tokens are right."""
    decisions = []
    for _ in range(rounds):
        decision = c.choose([outlook])
        right = {Source.LOOKUP: lookup, Source.DRAFT: draft, Source.NONE: 0}[decision.sources[0]]
        c.observe(decision, [outlook], [min(right, decision.arm.steps)], milliseconds(decision.arm, 1))
        decisions.append(decision)
    return decisions


def test_the_first_round_of_a_fresh_pod_is_off() -> None:
    assert controller().choose([NO_MATCH]).arm == OFF


def test_a_draft_that_is_always_right_is_used_with_all_its_steps() -> None:
    assert {d.arm for d in play(controller(), NO_MATCH, 300, draft=5)[-50:]} == {Arm(5, drafts=True)}


def test_a_draft_that_is_never_right_hardly_runs() -> None:
    decisions = play(controller(), NO_MATCH, 400)
    assert sum(d.arm == OFF for d in decisions) > 360
    assert all(d.explores for d in decisions if d.arm != OFF)


def test_a_draft_without_an_accepted_token_is_never_chosen_although_off_seems_dear() -> None:
    """The first times of off are three times too long, so that the draft seems to cost no more than off."""
    c, drafting = controller(), 0
    for i in range(100):
        decision = c.choose([NO_MATCH])
        took = milliseconds(decision.arm, 1) * (3 if decision.arm == OFF and i < 10 else 1)
        c.observe(decision, [NO_MATCH], [0], took)
        assert decision.explores or not decision.arm.drafts
        drafting += decision.arm.drafts
    assert drafting


def test_a_lookup_that_is_always_right_is_preferred_to_an_equal_draft() -> None:
    last = play(controller(), MATCH, 300, lookup=7, draft=5)[-50:]
    assert {d.sources[0] for d in last} == {Source.LOOKUP}
    assert not any(d.arm.drafts for d in last)


def test_a_request_that_the_draft_cannot_serve_gets_no_chain() -> None:
    c = controller()
    play(c, NO_MATCH, 200, draft=5)
    batch = [NO_MATCH, RequestOutlook("b", 0, 0, CANNOT_DRAFT)]
    for _ in range(20):
        decision = c.choose(batch)
        accepted = [decision.arm.steps * (source is Source.DRAFT) for source in decision.sources]
        c.observe(decision, batch, accepted, milliseconds(decision.arm, 2))
    assert decision.arm.drafts
    assert decision.sources == (Source.DRAFT, Source.NONE)


@pytest.mark.parametrize("before", [0, 200], ids=["a fresh pod", "a draft that was always right"])
@pytest.mark.parametrize(("match", "lookup"), [(0, 0), (8, 7)], ids=["no lookup", "lookup that is always right"])
def test_no_round_drafts_while_no_request_can(before: int, match: int, lookup: int) -> None:
    c, outlook = controller(), RequestOutlook("b", match, 7 if match else 0, CANNOT_DRAFT)
    play(c, NO_MATCH, before, draft=5)
    assert not any(d.arm.drafts for d in play(c, outlook, 400, lookup=lookup))


def test_a_round_that_explores_the_draft_lets_it_propose_although_lookup_is_expected_to_be_better() -> None:
    short_match = RequestOutlook("a", lookup_match=2, lookup_length=7, pending=0)
    explored = next(d for d in play(controller(), short_match, 200, lookup=1) if d.explores and d.arm.drafts)
    assert explored.sources == (Source.DRAFT,)


@pytest.mark.parametrize(("lookup", "source"), [(3, Source.DRAFT), (5, Source.LOOKUP)])
def test_lookup_replaces_the_draft_of_a_request_only_with_a_lead(lookup: int, source: Source) -> None:
    c = controller(arms=(OFF, Arm(5, drafts=True)))
    play(c, NO_MATCH, 100, draft=3)
    for _ in range(30):
        decision = c.choose([MATCH])
        right = {Source.LOOKUP: lookup, Source.DRAFT: 3, Source.NONE: 0}[decision.sources[0]]
        c.observe(decision, [MATCH], [right], milliseconds(decision.arm, 1), unplayed_lookup=[min(lookup, right + 1)])
    assert decision.sources == (source,)


def test_a_look_that_a_prefill_interrupts_costs_what_it_was_expected_to_cost() -> None:
    """The arm's own time is what the look doubts, so it is no price."""
    c, draft = controller(arms=(OFF, Arm(5, drafts=True))), Decision(Arm(5, drafts=True), (Source.DRAFT,), True)
    off = Decision(OFF, (Source.NONE,), explores=False)
    for _ in range(3):
        c.observe(off, [NO_MATCH], [0], 20.0)
        c.observe(replace(draft, explores=False), [NO_MATCH], [0], 200.0)
    while not (due := c._costs.looks(1)):
        c.observe(off, [NO_MATCH], [0], 20.0)
    before = c._budget.credit_milliseconds
    c.observe(draft, [NO_MATCH], [0], None)
    lost = before - c._budget.credit_milliseconds
    assert 0 < lost < due[1] < c._costs.milliseconds(1)[1] / 2


def test_an_empty_batch_is_off() -> None:
    assert controller().choose([]) == Decision(OFF, (), explores=False)


def test_arms_without_off_are_refused() -> None:
    with pytest.raises(ValueError, match="off"):
        controller((Arm(1, drafts=False),))


def test_the_report_counts_rounds_and_tokens() -> None:
    c = controller()
    decisions = play(c, NO_MATCH, 100, draft=5)
    report = c.report()
    assert report.rounds == 100 == sum(report.rounds_by_arm.values())
    assert report.exploring_rounds == sum(d.explores for d in decisions)
    assert report.proposed_by_source[Source.DRAFT] == report.accepted_by_source[Source.DRAFT]
    assert report.share(OFF) == sum(d.arm == OFF for d in decisions) / 100


outlooks = st.lists(
    st.builds(
        RequestOutlook,
        rid=st.sampled_from("abcdef"),
        lookup_match=st.integers(0, 40),
        lookup_length=st.integers(0, 12),
        pending=st.integers(-1, 300),
    ),
    max_size=6,
)


@settings(max_examples=example_count(50))
@given(st.lists(st.tuples(outlooks, st.floats(1, 100) | st.none()), max_size=30), st.integers(0, 5))
def test_equal_seeds_and_equal_calls_decide_equally_and_sensibly(
    rounds: list[tuple[list[RequestOutlook], float | None]], right: int
) -> None:
    first, second = controller(), controller()
    for batch, took in rounds:
        decision = first.choose(batch)
        assert decision == second.choose(batch)
        assert decision.arm in ARMS
        assert len(decision.sources) == len(batch)
        for outlook, source in zip(batch, decision.sources, strict=True):
            assert source is not Source.DRAFT or (decision.arm.drafts and outlook.pending != CANNOT_DRAFT)
            assert source is not Source.LOOKUP or (outlook.lookup_match and outlook.lookup_length)
        accepted = [min(right, decision.arm.steps) if s is not Source.NONE else 0 for s in decision.sources]
        for each in (first, second):
            each.observe(decision, batch, accepted, took)
            each.request_ended("a")
