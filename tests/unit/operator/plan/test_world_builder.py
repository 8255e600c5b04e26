"""How the rollout sees a pod."""

from __future__ import annotations

import pytest

from aurora_operator.plan.world_builder import rollout_pod
from tests.unit.operator.worlds import pod


@pytest.mark.parametrize(
    ("container", "waiting", "expected"),
    [("sglang", "CrashLoopBackOff", True), ("sglang", "ImagePullBackOff", False), ("agent", "CrashLoopBackOff", False)],
)
def test_only_an_engine_that_ends_again_and_again_shortens_the_time_of_its_pod(
    container: str, waiting: str, *, expected: bool
) -> None:
    """The agent's container says nothing about the draft that the engine loads."""
    view = pod("chat-a", 1, ready=False, agent=None, failing=container, waiting=waiting)
    assert rollout_pod(view).crash_loops is expected
