"""The command line and the environment of an engine follow the spec, and the user's arguments win."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from aurora_api.v1alpha1.draft import DraftSpec, LookupScope, Shape
from aurora_protocol.tag_hash import tag_key
from aurora_runtime.engine.speculation_flags import SPECULATION_VARIABLE
from aurora_runtime.engine.speculation_settings import SpeculationSettings
from aurora_runtime.held_out_split import traffic_key
from aurora_runtime.serving.capture.settings import CAPTURE_VARIABLE, CaptureSettings
from aurora_runtime.serving.launcher import EngineStart, engine_arguments
from tests.unit.serving.engine_starts import ADMIN_KEY, TRAFFIC_SECRET, engine_start, settings


def start(path: Path, shape: Shape) -> EngineStart:
    made = engine_start(path)
    draft = DraftSpec(steps=3, shape=shape, lookup=LookupScope.REQUEST)
    return replace(made, settings=made.settings.model_copy(update={"draft": draft}))


def test_adaptive_starts_the_controller_with_the_spec_as_its_bounds(tmp_path: Path) -> None:
    made = start(tmp_path, Shape.ADAPTIVE)
    command = made.command(tmp_path / "config.yaml")
    config = Path(command[command.index("--speculative-adaptive-config") + 1])
    assert config.exists()
    settings = SpeculationSettings.from_json(made.environment()[SPECULATION_VARIABLE])
    assert (settings.draft_steps, settings.lookup, settings.boot) == (3, LookupScope.REQUEST, "b1")


def test_capture_and_lookup_get_the_same_key_and_never_the_secret_behind_it(tmp_path: Path) -> None:
    environment = start(tmp_path, Shape.ADAPTIVE).environment()
    capture = CaptureSettings.from_json(environment[CAPTURE_VARIABLE])
    lookup = SpeculationSettings.from_json(environment[SPECULATION_VARIABLE])
    assert capture.traffic_key == lookup.traffic_key == traffic_key(TRAFFIC_SECRET, lineage=1).hex()
    for secret in (ADMIN_KEY, TRAFFIC_SECRET):
        assert secret not in environment[CAPTURE_VARIABLE] + environment[SPECULATION_VARIABLE]
    assert capture.tag_key == tag_key(TRAFFIC_SECRET).hex(), "a tag has one hash in all pods"
    for key in (capture.traffic_key, capture.tag_key):
        assert key not in f"{capture!r} {lookup!r}", "no log shows the key"


def test_a_fixed_shape_starts_without_the_controller(tmp_path: Path) -> None:
    made = start(tmp_path, Shape.FIXED)
    assert "--speculative-adaptive" not in made.command(tmp_path / "config.yaml")
    assert SPECULATION_VARIABLE not in made.environment()


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
