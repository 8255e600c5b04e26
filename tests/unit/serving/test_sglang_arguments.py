"""SGLang's command line follows the spec and the mode, and the user's arguments win."""

from __future__ import annotations

from pathlib import Path

from aurora_api.v1alpha1.draft import DraftSpec
from aurora_api.v1alpha1.target import TargetSpec
from aurora_protocol.pod_settings import ServingSettings, StoreSettings
from aurora_runtime.serving.launcher import engine_arguments
from tests.assets.signing import ROOT_OWNER


def settings(**options: object) -> ServingSettings:
    return ServingSettings(
        namespace="n",
        name="s",
        target=TargetSpec(model="org/model", revision="abc"),
        draft=DraftSpec(steps=2),
        store=StoreSettings(owner=ROOT_OWNER.id, bucket="bucket", root="root"),
        **options,  # type: ignore[arg-type]
    )


def test_the_command_line_follows_the_spec() -> None:
    arguments = engine_arguments(settings(), draft=Path("/drafts/v3"), version=3, port=30000)
    for flag, value in {
        "--model-path": "org/model",
        "--served-model-name": "org/model",
        "--revision": "abc",
        "--speculative-algorithm": "EAGLE3",
        "--speculative-draft-model-path": "/drafts/v3",
        "--speculative-num-steps": "2",
        "--speculative-eagle-topk": "1",
        "--speculative-num-draft-tokens": "3",
        "--weight-version": "3",
        "--max-running-requests": "256",
        "--speculative-draft-model-quantization": "unquant",
        "--custom-weight-loader": "aurora_runtime.engine.weight_loader.load_draft",
    }.items():
        assert arguments[arguments.index(flag) + 1] == value
    assert "--enable-metrics" in arguments


def test_the_users_arguments_win() -> None:
    arguments = engine_arguments(
        settings(extra_args=["--dtype=float16", "--tp-size", "2"]), draft=Path("/d"), version=0, port=1
    )
    assert arguments[-3:] == ["--dtype=float16", "--tp-size", "2"]
