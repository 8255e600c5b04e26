"""The demo's progress lines name the current activity, the serving version and its key figure, in one short line."""

from __future__ import annotations

from typing import Any

from aurora_api.v1alpha1.status import (
    CandidatePhase,
    CandidateStatus,
    RolloutPhase,
    RolloutStatus,
    SpeculatorStatus,
    TrainingStatus,
    VersionStatus,
)
from tests.demo.progress import learned_draft_serves_everywhere, progress_line
from tests.traffic.report import RequestCounts

CLIENT = RequestCounts().summary("extraction", duration_seconds=1.0)
TRAINING = TrainingStatus(step=40, held_out_accept_length="1.52")


def resource(**status: Any) -> dict[str, Any]:
    given = {"active": VersionStatus(version=0), "accept_length": "1.05", "training": TRAINING, **status}
    dumped = SpeculatorStatus(**given).model_dump(mode="json", by_alias=True, exclude_none=True)
    return {"spec": {"serving": {"replicas": 2}}, "status": dumped}


def test_without_a_candidate_the_line_tells_of_training() -> None:
    assert progress_line(resource(), CLIENT) == (
        "training: step 40, held-out acceptance length 1.52 | serving version 0, acceptance length 1.05 "
        "| 0 requests, 0 failed"
    )


def test_a_candidate_that_is_measured_is_named() -> None:
    candidate = CandidateStatus(version=1, phase=CandidatePhase.VALIDATING)
    assert progress_line(resource(candidate=candidate), CLIENT).startswith("measuring version 1 against version 0 | ")


def test_the_estimated_speed_against_no_speculation_is_shown() -> None:
    line = progress_line(resource(estimated_speedup="~1.8x"), CLIENT)
    assert "acceptance length 1.05, estimated at ~1.8x of no speculation | " in line


def test_a_rejected_candidate_is_named_with_a_shortened_reason() -> None:
    candidate = CandidateStatus(version=1, phase=CandidatePhase.REJECTED, message="slower than " * 40)
    line = progress_line(resource(candidate=candidate), CLIENT)
    assert "version 1 Rejected: slower than" in line
    assert len(line) < 250


def test_a_rollout_is_told_with_its_pods() -> None:
    rollout = RolloutStatus(phase=RolloutPhase.CANARY, version=1, updated=1, total=2)
    line = progress_line(resource(rollout=rollout), CLIENT)
    assert line.startswith("rollout of version 1: Canary, 1 of 2 pods | ")


def test_before_the_operator_has_written_a_status_there_is_a_line_too() -> None:
    assert progress_line({"spec": {}}, CLIENT) == "training: step 0 | serving version - | 0 requests, 0 failed"
    assert not learned_draft_serves_everywhere({"spec": {"serving": {"replicas": 2}}})
