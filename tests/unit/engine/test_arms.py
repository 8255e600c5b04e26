from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aurora_runtime.engine.arms import OFF, Arm, arms_within


def test_arms_within_bounds_offer_the_ladder_and_the_bounds_themselves() -> None:
    arms = arms_within(draft_steps=4, lookup_steps=8)
    assert [arm.steps for arm in arms if arm.drafts] == [1, 3, 4]
    assert [arm.steps for arm in arms if not arm.drafts] == [0, 1, 3, 7, 8]


@given(st.integers(0, 16), st.integers(0, 16))
def test_arms_are_distinct_and_ascending_and_begin_with_off(draft_steps: int, lookup_steps: int) -> None:
    arms = arms_within(draft_steps, lookup_steps)
    assert arms[0] == OFF
    assert list(arms) == sorted(set(arms))
    assert any(arm.drafts for arm in arms) == (draft_steps > 0)
    assert len({arm.name for arm in arms}) == len(arms)


def test_a_draft_without_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="does not exist"):
        Arm(0, drafts=True)
