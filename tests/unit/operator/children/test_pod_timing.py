"""The time that a start may take follows from the startup probe that the pods really have."""

from __future__ import annotations

from typing import Any

import pytest

from aurora_operator.children.inference_deployment import (
    MAX_SECONDS,
    MIN_START_SECONDS,
    deployment,
    inference_template,
    start_deadline,
)
from tests.unit.operator.worlds import CONFIG, OWNER, spec


def progress_deadline(probe: Any) -> int:
    """The Deployment's progress deadline when the user's template has this startup probe."""
    containers = [{"name": "sglang", "startupProbe": probe}]
    given = spec(serving={"template": {"spec": {"containers": containers}}})
    made = deployment(OWNER, given, inference_template(OWNER, given, CONFIG), {})
    return int(made["spec"]["progressDeadlineSeconds"])


@pytest.mark.parametrize(
    ("probe", "seconds"),
    [
        pytest.param({}, 3900, id="ours"),
        pytest.param({"failureThreshold": 1440}, 7500, id="twice as many failures"),
        pytest.param({"periodSeconds": 10, "initialDelaySeconds": 60}, 7560, id="longer periods after a delay"),
        pytest.param({"failureThreshold": 6}, MIN_START_SECONDS, id="images may still take long"),
        pytest.param({"failureThreshold": 2**31 - 1}, MAX_SECONDS, id="without an end"),
    ],
)
def test_the_progress_deadline_is_a_little_more_than_the_startup_probe_allows(probe: Any, seconds: int) -> None:
    assert progress_deadline(probe) == seconds


@pytest.mark.parametrize("template", [{}, {"spec": None}, {"spec": {"containers": [{"name": "sglang"}]}}])
def test_a_template_without_the_engines_probe_gets_the_usual_time(template: dict[str, Any]) -> None:
    assert start_deadline(template).total_seconds() == MIN_START_SECONDS
