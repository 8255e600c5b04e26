"""An engine whose rounds cannot be controlled says which of its settings is to blame."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from aurora_runtime.engine.speculation_settings import SpeculationSettings
from aurora_runtime.serving.speculation.worker import engine_requirements
from aurora_runtime.serving.speculation.worker.engine_requirements import (
    SKIP_EXTEND_VARIABLE,
    obstacle_to_control,
    pending_buffer,
)

SETTINGS = SpeculationSettings(state_folder="/state", boot="b", draft_steps=2, lookup_steps=3)
WORKER = SimpleNamespace(
    adaptive_controller=SimpleNamespace(candidate_steps=sorted({arm.steps for arm in SETTINGS.arms})),
    draft_worker=SimpleNamespace(
        req_to_token_pool=SimpleNamespace(req_to_token=torch.zeros(5, 1)),
        draft_runner=SimpleNamespace(model_config=SimpleNamespace(dtype=torch.float32)),
        device="cpu",
    ),
)


@pytest.fixture(autouse=True)
def context(monkeypatch: pytest.MonkeyPatch) -> Any:
    """SGLang's settings, which fit."""
    context = SimpleNamespace(
        enable_mixed_chunk=False, disable_overlap_schedule=False, speculative_use_rejection_sampling=False, pp_size=1
    )
    names = ("get_schedule", "get_spec", "get_parallel")
    module = SimpleNamespace(**{name: lambda: context for name in names})
    monkeypatch.setitem(sys.modules, "sglang.srt.runtime_context", module)
    eagle = SimpleNamespace(get_draft_input_from_target_hidden_dim=lambda _: 2)
    monkeypatch.setitem(sys.modules, "sglang.srt.speculative.eagle_utils", eagle)
    monkeypatch.delenv(SKIP_EXTEND_VARIABLE, raising=False)
    return context


def test_an_engine_that_was_started_as_the_hooks_need_it_can_be_controlled() -> None:
    assert obstacle_to_control(WORKER, SETTINGS) is None


@pytest.mark.parametrize(
    ("setting", "value", "named"),
    [
        ("enable_mixed_chunk", True, "--enable-mixed-chunk"),
        ("speculative_use_rejection_sampling", True, "--speculative-use-rejection-sampling"),
        ("pp_size", 2, "pipeline parallelism"),
    ],
)
def test_a_flag_that_does_not_fit_is_named(context: Any, setting: str, value: object, named: str) -> None:
    setattr(context, setting, value)
    assert named in str(obstacle_to_control(WORKER, SETTINGS))


def test_a_worker_without_the_states_of_the_arms_is_named() -> None:
    assert "turned --speculative-adaptive off" in str(
        obstacle_to_control(SimpleNamespace(adaptive_controller=None), SETTINGS)
    )
    more = SETTINGS.model_copy(update={"draft_steps": 7, "lookup_steps": 0})
    assert "lacks the steps" in str(obstacle_to_control(WORKER, more))


def test_a_buffer_too_small_for_the_running_requests_is_refused() -> None:
    assert "pending_bytes" in str(obstacle_to_control(WORKER, SETTINGS.model_copy(update={"pending_bytes": 100})))
    enough = SETTINGS.model_copy(update={"pending_bytes": 1 << 20})
    assert obstacle_to_control(WORKER, enough) is None


def test_a_device_without_memory_for_the_buffer_says_what_to_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(engine_requirements, "PendingTokens", no_memory)
    with pytest.raises(RuntimeError, match=r"0.00 GB .* serving.maxRunningRequests, .* --mem-fraction-static"):
        pending_buffer(WORKER, SETTINGS)


@pytest.mark.parametrize(
    ("value", "refused"), [("1", True), ("true", True), ("0", False), ("False", False), ("", False)]
)
def test_rounds_whose_end_the_hooks_would_not_see_are_refused(
    monkeypatch: pytest.MonkeyPatch, value: str, refused: bool
) -> None:
    """With this variable SGLang leaves out the draft's extend by itself, and the pending tokens would be lost."""
    monkeypatch.setenv(SKIP_EXTEND_VARIABLE, value)
    obstacle = obstacle_to_control(WORKER, SETTINGS)
    assert (obstacle is not None) is refused
    assert not refused or SKIP_EXTEND_VARIABLE in str(obstacle)
