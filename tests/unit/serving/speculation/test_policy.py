"""Fixed arms: their names, their order and their sources."""

from __future__ import annotations

import pytest

from aurora_runtime.engine.arms import OFF, Arm, Source
from aurora_runtime.serving.speculation.controller import FixedArms
from aurora_runtime.serving.speculation.rounds import RequestOutlook

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
