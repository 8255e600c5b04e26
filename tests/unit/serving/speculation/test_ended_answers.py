"""What the target makes of a request behind the end of its answer teaches the controller nothing."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from aurora_runtime.engine.arms import OFF, Arm, Source
from aurora_runtime.engine.speculation_settings import SpeculationSettings
from aurora_runtime.serving.speculation.controller import Controller, ControllerSettings
from aurora_runtime.serving.speculation.outlook import Decision, RequestOutlook

SETTINGS = SpeculationSettings(state_folder="/state", boot="b", draft_steps=3)
DRAFT = Arm(3, drafts=True)
MILLISECONDS = {OFF: 10.0, DRAFT: 13.0}


def controller() -> Controller:
    """A controller that has timed off, and a draft that is mostly right."""
    made = Controller(SETTINGS.arms, ControllerSettings(), random.Random(1))  # noqa: S311 - no secret
    for number in range(40):
        run(made, [f"r{number % 4}"], OFF if number % 2 else DRAFT, [0] if number % 2 else [3])
    return made


def run(
    policy: Controller,
    rids: Sequence[str],
    arm: Arm,
    accepted: Sequence[int],
    made: Sequence[int] = (),
    lookup: Sequence[int] = (),
) -> None:
    source = Source.DRAFT if arm.drafts else Source.NONE
    outlooks = [RequestOutlook(rid, 8 if lookup else 0, 11 if lookup else 0, 0) for rid in rids]
    policy.observe(Decision(arm, (source,) * len(rids), False), outlooks, accepted, MILLISECONDS[arm], lookup, made)


def curves(policy: Controller, rid: str, match: int = 0) -> list[float]:
    outlook = RequestOutlook(rid, match, 11 if match else 0, 0)
    lookup, draft = policy._curves([outlook], 0.0)
    return [*lookup[0], *draft[0]]


def test_a_round_after_an_answers_end_does_not_change_what_new_requests_begin_with() -> None:
    seen, told = controller(), controller()
    before = curves(seen, "new")
    for number in range(12):
        run(seen, [f"ended{number}"], DRAFT, [0], made=[0])
        seen.request_ended(f"ended{number}")
        run(told, [f"ended{number}"], DRAFT, [0])
        told.request_ended(f"ended{number}")
    assert curves(seen, "new") == before
    assert sum(curves(told, "new")) < 0.8 * sum(before), "a round that counts would"


def test_tokens_accepted_behind_an_answers_end_prove_nothing() -> None:
    """Of four tokens the answer took two. The draft was right twice, and nobody knows what it is worth behind."""
    cut, short = controller(), controller()
    for _ in range(10):
        run(cut, ["r"], DRAFT, [3], made=[2], lookup=[2])
        run(short, ["r"], DRAFT, [2], made=[2], lookup=[2])
    assert curves(cut, "new", 8) == curves(short, "new", 8)


def credit_after(policy: Controller, made: Sequence[int], milliseconds: float | None) -> float:
    """What the bucket holds after a round that explored the draft, and in which each request made so much."""
    outlooks = [RequestOutlook(f"r{i}", 0, 0, 0) for i in range(len(made))]
    decision = Decision(DRAFT, (Source.DRAFT,) * len(made), explores=True)
    policy.observe(decision, outlooks, [max(0, own - 1) for own in made], milliseconds, tokens_made=made)
    return policy._budget.credit_milliseconds


def test_a_trial_in_which_every_answer_had_ended_is_not_charged() -> None:
    policy = controller()
    before = policy._budget.credit_milliseconds
    assert credit_after(policy, [0], None) == before
    assert credit_after(policy, [0, 0], None) == before


def test_a_trial_is_not_charged_for_the_requests_that_had_ended() -> None:
    """All running requests make as much in both rounds, so that the draft is worth the same per request."""
    none, one = controller(), controller()
    before = none._budget.credit_milliseconds
    full = before - credit_after(none, [1] * 16, None)
    assert full > 0, "a draft that was wrong loses"
    assert before - credit_after(one, [1] * 15 + [0], None) == pytest.approx(full, rel=0.1)


def test_the_speedup_counts_the_tokens_of_answers_and_all_of_the_time() -> None:
    """Off makes one token of each request that has not ended, and runs one that has ended once, too."""
    policy, plain = controller(), controller()
    for number in range(2000):
        run(policy, [f"a{number}", f"b{number}"], DRAFT, [3, 3], made=[4, 0])
        run(plain, [f"a{number}", f"b{number}"], DRAFT, [3, 3])
    ratio = (policy.report().speedup_over_off or 0) / (plain.report().speedup_over_off or 1)
    assert ratio == pytest.approx(5 / 8, rel=0.02)


def test_a_pod_that_runs_off_alone_is_as_fast_as_off_although_answers_end() -> None:
    policy = Controller(SETTINGS.arms, ControllerSettings(), random.Random(1))  # noqa: S311 - no secret
    for number in range(100):
        run(policy, [f"a{number}", f"b{number}"], OFF, [0, 0], made=[1, number % 2])
    report = policy.report()
    assert report.speedup_over_off == pytest.approx(1.0)
    assert report.saved_seconds == pytest.approx(0.0)
