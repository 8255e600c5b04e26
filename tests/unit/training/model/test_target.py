"""Errors of an unavailable target say what to do."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from huggingface_hub.errors import RepositoryNotFoundError

from aurora_api.v1alpha1.target import TargetSpec
from aurora_runtime.errors import TargetUnavailable
from aurora_runtime.training.model.target import load_target


def test_the_error_for_a_missing_target_file_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(TargetUnavailable, match=r"config\.json"):
        load_target(TargetSpec(model=str(tmp_path)))


def test_the_error_for_a_gated_model_names_hf_token(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise RepositoryNotFoundError("401", response=httpx.Response(401, request=httpx.Request("GET", "http://hub")))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(TargetUnavailable, match="set HF_TOKEN"):
        load_target(TargetSpec(model="meta/gated"))
