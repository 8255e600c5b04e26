"""After two crashes within ten minutes with one draft version, an engine serves without speculation."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from aurora_api.v1alpha1.draft import DraftSpec, LookupScope, PublishedHead, Shape
from aurora_protocol.draft_records import CheckpointManifest
from aurora_runtime.engine.speculation_flags import SPECULATION_VARIABLE
from aurora_runtime.engine.speculation_settings import SpeculationSettings
from aurora_runtime.errors import EngineFault
from aurora_runtime.serving import launcher
from aurora_runtime.serving.launcher import EngineStart, EngineSupervisor, ReadinessCheck, StartFiles, prepare_start
from aurora_runtime.serving.pod_files import MANIFEST, EngineCrashes, PodFolder, Withdrawal, write_atomically
from tests.unit.serving.engine_starts import engine_start

NOW = datetime(2026, 12, 2, 12, tzinfo=UTC)
MANIFEST_3 = CheckpointManifest(lineage=1, version=3, digest="a" * 64, files=(), step=0, trained_tokens=0, created=NOW)
DRAFT = DraftSpec(initial=PublishedHead(model="somebody/head"), lookup=LookupScope.REQUEST)


def crash(path: Path) -> None:
    """Run an engine that ends by itself, with version 3."""
    draft = path / "drafts" / "current"
    draft.mkdir(parents=True, exist_ok=True)
    (draft / MANIFEST).write_bytes(MANIFEST_3.to_json())
    process = subprocess.Popen(["sh", "-c", "sleep 0.1; exit 7"], start_new_session=True)
    assert EngineSupervisor(engine_start(path), process).run() == 7


def next_start(path: Path, monkeypatch: pytest.MonkeyPatch, *, version: int, draft: DraftSpec = DRAFT) -> EngineStart:
    start = engine_start(path, draft=draft)
    files = StartFiles(draft=path, version=version, admin_key="k", traffic_secret="s")  # noqa: S106 - of the tests
    monkeypatch.setattr(launcher, "ensure_draft", lambda *_: None)
    monkeypatch.setattr(StartFiles, "read", lambda _: files)
    monkeypatch.setattr(launcher, "detect_machine", lambda _: start.state.machine)
    return prepare_start(start.settings, start.options)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "CRASH_GRACE_SECONDS", 0.0)
    monkeypatch.setattr(ReadinessCheck, "run", lambda _: None)
    monkeypatch.setattr("signal.signal", lambda *_: None)


def test_two_crashes_hold_the_next_starts_with_this_version_to_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash(tmp_path)
    assert next_start(tmp_path, monkeypatch, version=3).state.held_version is None
    crash(tmp_path)
    for _ in range(2):
        held = next_start(tmp_path, monkeypatch, version=3)
        assert held.state.held_version == 3
        assert held.controller is not None
        settings = SpeculationSettings.from_json(held.controller.environment()[SPECULATION_VARIABLE])
        assert settings.lookup is LookupScope.OFF
        assert all(arm.drafts or arm.name == "off" for arm in settings.arms)
        assert 3 in settings.untrained_versions, "and so no round drafts either"
    other = next_start(tmp_path, monkeypatch, version=4)
    assert other.state.held_version is None
    fixed = DRAFT.model_copy(update={"shape": Shape.FIXED})
    assert next_start(tmp_path, monkeypatch, version=3, draft=fixed).state.held_version is None


def test_only_crashes_of_the_pods_own_draft_within_ten_minutes_count(tmp_path: Path) -> None:
    folder = PodFolder(tmp_path)
    withdrawal = Withdrawal(
        measurement="job", boot="b1", current_digest="0" * 64, current_checksum="sum", pass_sha256="0" * 64
    )
    write_atomically(folder.withdrawal, withdrawal.to_json())
    crash(tmp_path)
    assert not folder.crashes.exists(), "a measurement's engine"
    first = EngineCrashes(version=3).plus(NOW)
    assert not first.plus(NOW + timedelta(minutes=11)).hold
    held = first.plus(NOW + timedelta(minutes=9))
    assert held.hold
    assert held.plus(NOW + timedelta(days=1)).hold, "an engine that is held stays so"
    folder.crashes.write_text("{")
    assert not folder.read_crashes(3).at


def test_an_engine_that_the_launcher_ends_has_not_crashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: ReadinessCheck) -> None:
        raise EngineFault("the controller refused")

    monkeypatch.setattr(ReadinessCheck, "run", fail)
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    with pytest.raises(EngineFault):
        EngineSupervisor(engine_start(tmp_path), process).run()
    assert not PodFolder(tmp_path).crashes.exists()
