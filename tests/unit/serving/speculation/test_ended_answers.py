"""What the target makes of a request behind the end of its answer teaches the controller nothing."""

from __future__ import annotations

import random
from collections.abc import Sequence

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


def test_the_speedup_counts_the_tokens_of_answers_and_all_of_the_time() -> None:
    policy, plain = controller(), controller()
    for number in range(400):
        run(policy, [f"a{number}", f"b{number}"], DRAFT, [3, 3], made=[4, 0])
        run(plain, [f"a{number}", f"b{number}"], DRAFT, [3, 3])
    ratio = (policy.report().speedup_over_off or 0) / (plain.report().speedup_over_off or 1)
    assert 0.49 < ratio < 0.6
