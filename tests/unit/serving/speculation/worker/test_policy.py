"""Fixed arms: their names, their order and their sources."""

from __future__ import annotations

import pytest

from aurora_runtime.engine.arms import OFF, Arm, Source
from aurora_runtime.serving.speculation.outlook import CANNOT_DRAFT, RequestOutlook
from aurora_runtime.serving.speculation.worker.policy import FixedArms

FOUND = RequestOutlook("found", 4, 3, 0)
NOTHING = RequestOutlook("nothing", 0, 0, 2)
LATE = RequestOutlook("late", 0, 0, CANNOT_DRAFT)


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
    decision = FixedArms([name]).choose([FOUND, NOTHING, LATE])
    assert decision.arm == arm
    assert decision.sources == tuple(letters[letter] for letter in sources)


def test_fixed_arms_take_turns() -> None:
    policy = FixedArms(["off", "draft-2"])
    assert [policy.choose([]).arm.name for _ in range(4)] == ["off", "draft-2", "off", "draft-2"]


@pytest.mark.parametrize("name", ["", "draft", "draft-0", "ngram-3", "lookup-x"])
def test_a_name_that_is_no_arm_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"arm|invalid literal"):
        FixedArms([name])
    with pytest.raises(ValueError, match="needs an arm"):
        FixedArms([])
