"""Decisions of the controller: what it chooses, when the draft is in use, and when it parks. Fixed arms take turns."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aurora_runtime.engine.arms import OFF, Arm, Source, arms_within
from aurora_runtime.serving.speculation.controller import PARK_ROUNDS, PROBE_PREFILLS, Controller, FixedArms
from aurora_runtime.serving.speculation.rounds import Decision, Outcome, RequestOutlook, plain_decision
from tests.example_count import example_count

ARMS = arms_within(draft_steps=5, lookup_steps=7)
NO_MATCH = RequestOutlook("a", lookup_match=0, lookup_length=0, can_draft=True)
MATCH = RequestOutlook("a", lookup_match=8, lookup_length=7, can_draft=True)


def milliseconds(decision: Decision, batch_size: int = 1) -> float:
    arm = decision.arm
    passes = arm.steps if arm.drafts else int(decision.keeps_draft)
    return 20 + 0.8 * arm.steps * batch_size + 1.6 * passes


def play(c: Controller, outlook: RequestOutlook, rounds: int, lookup: int = 0, draft: int = 0) -> list[Decision]:
    """Rounds of one request, of whose proposals ``lookup`` or ``draft`` tokens are right. A prefill every 16 rounds."""
    decisions, can_draft, parked = list[Decision](), False, 0
    for number in range(rounds):
        if number % 16 == 0:
            can_draft = c.prefill_drafts()
            parked = 0 if can_draft else parked
        if parked:
            parked -= 1
            c.round_parked(1)
            continue
        now = outlook._replace(rid=f"r{number // 16}", can_draft=outlook.can_draft and can_draft)
        decision = c.choose([now])
        right = {Source.LOOKUP: lookup, Source.DRAFT: draft, Source.NONE: 0}[decision.sources[0]]
        accepted = min(right, decision.arm.steps)
        c.observe(Outcome(decision, [now], [accepted], milliseconds(decision), [min(lookup, accepted + 1)]))
        can_draft &= decision.keeps_draft
        parked = decision.park_rounds
        decisions.append(decision)
    return decisions


def test_a_draft_that_is_always_right_comes_into_use_with_all_its_steps() -> None:
    c = Controller(ARMS)
    last = play(c, NO_MATCH, 500, draft=5)[-100:]
    assert sum(d.arm == Arm(5, drafts=True) for d in last) > 90
    assert all(d.keeps_draft for d in last), "it processes the rounds that time off, too"
    assert c.prefill_drafts()


def test_a_draft_that_is_never_right_hardly_runs_and_the_controller_parks() -> None:
    c = Controller(ARMS)
    decisions = play(c, NO_MATCH, 2000)
    assert all(d.explores for d in decisions if d.arm != OFF)
    assert len(decisions) < 800, "most rounds are parked"
    assert {d.park_rounds for d in decisions} == {0, PARK_ROUNDS}
    assert sum(c.prefill_drafts() for _ in range(10 * PROBE_PREFILLS)) <= 11


def test_a_draft_that_is_not_run_is_never_prefilled_and_another_version_is_tried_at_once() -> None:
    c = Controller(ARMS)
    play(c, NO_MATCH, 200, draft=5)
    c.draft_serves(None)
    assert not any(d.arm.drafts or d.keeps_draft for d in play(c, NO_MATCH, 200))
    c.draft_serves("2")
    play(c, NO_MATCH, 16)
    assert any(d.arm.drafts for d in play(c, NO_MATCH, 64, draft=5))


def test_a_draft_that_serves_again_is_known() -> None:
    """The gate lets two drafts serve by turns, for some dozens of rounds each."""
    c = Controller(ARMS)
    c.draft_serves("1")
    play(c, NO_MATCH, 200, draft=5)
    for _ in range(3):
        c.draft_serves("2")
        play(c, NO_MATCH, 100)
        c.draft_serves("1")
        assert all(d.arm.drafts for d in play(c, NO_MATCH, 8, draft=5))


def test_a_draft_without_an_accepted_token_is_never_chosen_although_off_seems_dear() -> None:
    """The first times of off are three times too long, so that the draft seems to cost no more than off."""
    c, drafting = Controller(ARMS), 0
    for i in range(200):
        can_draft = c.prefill_drafts()
        outlook = NO_MATCH._replace(can_draft=can_draft)
        decision = c.choose([outlook])
        took = milliseconds(decision) * (3 if decision.arm == OFF and i < 10 else 1)
        c.observe(Outcome(decision, [outlook], [0], took))
        assert decision.explores or not decision.arm.drafts
        drafting += decision.arm.drafts
    assert drafting


def test_a_request_that_the_draft_cannot_serve_gets_no_chain() -> None:
    c = Controller(ARMS)
    play(c, NO_MATCH, 500, draft=5)
    batch = [NO_MATCH, NO_MATCH._replace(rid="b", can_draft=False)]
    drafting = list[Decision]()
    for _ in range(40):
        decision = c.choose(batch)
        accepted = [decision.arm.steps * (source is Source.DRAFT) for source in decision.sources]
        c.observe(Outcome(decision, batch, accepted, milliseconds(decision, 2)))
        drafting += [decision] if decision.arm.drafts else []
    assert {d.sources for d in drafting} == {(Source.DRAFT, Source.NONE)}


@pytest.mark.parametrize("before", [0, 200], ids=["a fresh pod", "a draft that was always right"])
@pytest.mark.parametrize(("match", "lookup"), [(0, 0), (8, 7)], ids=["no lookup", "lookup that is always right"])
def test_no_round_drafts_while_no_request_can(before: int, match: int, lookup: int) -> None:
    c, outlook = Controller(ARMS), RequestOutlook("b", match, 7 if match else 0, can_draft=False)
    play(c, NO_MATCH, before, draft=5)
    assert not any(d.arm.drafts for d in play(c, outlook, 400, lookup=lookup))


def test_what_the_target_makes_behind_an_answers_end_teaches_nothing() -> None:
    cut, short, ended = Controller(ARMS), Controller(ARMS), Controller(ARMS)
    drafted = Decision(Arm(3, drafts=True), (Source.DRAFT,), keeps_draft=True)
    for number in range(10):
        cut.observe(Outcome(drafted, [MATCH], [3], 22.0, [2], [2]))
        short.observe(Outcome(drafted, [MATCH], [2], 22.0, [2], [2]))
        ended.observe(Outcome(drafted, [MATCH._replace(rid=f"ended {number}")], [0], 22.0, [0], [0]))
        ended.request_ended(f"ended {number}")
    assert cut._draft_curve(MATCH) == short._draft_curve(MATCH)
    assert cut._lookup_curve(MATCH) == short._lookup_curve(MATCH)
    assert ended._draft_curve(NO_MATCH) == Controller(ARMS)._draft_curve(NO_MATCH)


def test_the_speedup_counts_the_tokens_of_answers_and_all_of_the_time() -> None:
    """Off makes one token of each request that has not ended, and runs one that has ended once, too."""
    policy, plain, idle = Controller(ARMS), Controller(ARMS), Controller(ARMS)
    batch = [NO_MATCH, NO_MATCH._replace(rid="b")]
    off, drafted = plain_decision(2), Decision(Arm(3, drafts=True), (Source.DRAFT,) * 2, keeps_draft=True)
    for number in range(3000):
        for each, made in ((policy, [4, 0]), (plain, [4, 4])):
            each.observe(
                Outcome(off, batch, [0, 0], 10.0) if number < 4 else Outcome(drafted, batch, [3, 3], 13.0, (), made)
            )
        idle.observe(Outcome(off, batch, [0, 0], 10.0, (), [1, number % 2]))
        idle.round_parked(2)
    ratio = (policy.speedup_over_off or 0) / (plain.speedup_over_off or 1)
    assert ratio == pytest.approx(5 / 8, rel=0.02)
    assert idle.speedup_over_off == pytest.approx(1.0)
    assert idle.saved_seconds == pytest.approx(0.0)


outlooks = st.lists(
    st.builds(
        RequestOutlook,
        rid=st.sampled_from("abcdef"),
        lookup_match=st.integers(0, 40),
        lookup_length=st.integers(0, 12),
        can_draft=st.booleans(),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=example_count(50))
@given(
    st.lists(st.tuples(outlooks, st.floats(1, 100) | st.none(), st.sampled_from(("", "prefill", "swap"))), max_size=40),
    st.integers(0, 5),
)
def test_equal_calls_decide_equally_and_sensibly(
    rounds: list[tuple[list[RequestOutlook], float | None, str]], right: int
) -> None:
    first, second = Controller(ARMS), Controller(ARMS)
    for number, (batch, took, event) in enumerate(rounds):
        if event == "prefill":
            assert first.prefill_drafts() == second.prefill_drafts()
        for each in (first, second):
            if event == "swap":
                each.draft_serves(str(number) if number % 3 else None)
        decision = first.choose(batch)
        assert decision == second.choose(batch)
        assert decision.arm in ARMS
        assert decision.keeps_draft or not decision.arm.drafts
        assert not (decision.park_rounds and (decision.keeps_draft or decision.arm != OFF))
        for outlook, source in zip(batch, decision.sources, strict=True):
            assert source is not Source.DRAFT or (decision.arm.drafts and outlook.can_draft)
            assert source is not Source.LOOKUP or (outlook.lookup_match and outlook.lookup_length)
        accepted = [min(right, decision.arm.steps) if s is not Source.NONE else 0 for s in decision.sources]
        for each in (first, second):
            each.observe(Outcome(decision, batch, accepted, took))
            each.request_ended("a")


# fixed arms ----------------------------------------------------------------------------------------------------------

FOUND = RequestOutlook("found", 4, 3, can_draft=True)
NOTHING = RequestOutlook("nothing", 0, 0, can_draft=True)
LATE = RequestOutlook("late", 0, 0, can_draft=False)


@pytest.mark.parametrize(
    ("name", "arm", "sources"),
    [
        ("off", OFF, "nnn"),
        ("lookup-5", Arm(5, drafts=False), "lnn"),
        ("draft-3", Arm(3, drafts=True), "ddn"),
        ("union-3", Arm(3, drafts=True), "ldn"),
    ],
)
def test_sources_of_a_fixed_arm(name: str, arm: Arm, sources: str) -> None:
    letters = {"n": Source.NONE, "l": Source.LOOKUP, "d": Source.DRAFT}
    policy = FixedArms([name])
    decision = policy.choose([FOUND, NOTHING, LATE])
    assert decision.arm == arm
    assert decision.sources == tuple(letters[letter] for letter in sources)
    assert decision.keeps_draft == policy.prefill_drafts() == arm.drafts


def test_fixed_arms_take_turns_and_the_draft_misses_none_of_them() -> None:
    policy = FixedArms(["off", "draft-2"])
    decisions = [policy.choose([]) for _ in range(4)]
    assert [decision.arm.name for decision in decisions] == ["off", "draft-2", "off", "draft-2"]
    assert all(decision.keeps_draft for decision in decisions)
    policy.draft_serves(None)
    assert not policy.choose([]).keeps_draft
