"""The launcher ends with its engine, reports what happened to it, and holds a draft that crashes it to off."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
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


def test_the_launcher_imports_neither_torch_nor_sglang() -> None:
    code = "import sys, aurora_runtime.serving.launcher; sys.exit(bool({'torch', 'sglang'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Short waits, and the signal handlers of this process restored."""
    monkeypatch.setattr(launcher, "CRASH_GRACE_SECONDS", 0.0)
    monkeypatch.setattr(launcher, "ORDER_POLL_SECONDS", 0.05)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every engine passes its checks at once."""
    monkeypatch.setattr(ReadinessCheck, "run", lambda _: None)


def supervisor(path: Path, command: str) -> EngineSupervisor:
    process = subprocess.Popen(["sh", "-c", command], start_new_session=True)
    return EngineSupervisor(engine_start(path), process)


def withdrawal(*, restart: bool) -> Withdrawal:
    return Withdrawal(
        measurement="job",
        boot="b1",
        current_digest="0" * 64,
        current_checksum="sum",
        restart=restart,
        pass_sha256="0" * 64,
    )


@pytest.mark.parametrize("code", [0, 7])
@pytest.mark.usefixtures("unchecked")
def test_an_engine_that_ends_by_itself_is_an_error(tmp_path: Path, code: int) -> None:
    engine = supervisor(tmp_path, f"sleep 0.3; exit {code}")
    assert engine.run() == (code or 1)
    state = engine._start.options.folder.read_engine_state()
    assert state is not None
    assert not state.ready


def test_an_engine_that_ends_when_its_checks_pass_is_not_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report of the checks may come after the report of the end, and must not stay."""
    engine = supervisor(tmp_path, "sleep 0.3")
    folder = engine._start.options.folder

    def pass_after_the_end(check: ReadinessCheck) -> None:
        while check.process.poll() is None or folder.read_engine_state() is None:
            time.sleep(0.02)

    monkeypatch.setattr(launcher, "CRASH_GRACE_SECONDS", 0.5)
    monkeypatch.setattr(ReadinessCheck, "run", pass_after_the_end)
    assert engine.run() == 1
    state = folder.read_engine_state()
    assert state is not None
    assert not state.ready


def test_a_launcher_that_is_asked_to_stop_before_the_engine_runs_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the launcher went on")

    monkeypatch.setattr(launcher, "require_sglang", lambda _: "0.5.23")
    monkeypatch.setattr(launcher, "prepare_start", stop)
    start = engine_start(tmp_path)
    with pytest.raises(SystemExit) as ended:
        launcher.serve(start.settings, start.options)
    assert ended.value.code == 0


@pytest.mark.parametrize("error", [EngineFault("the redaction hook is not in place"), RuntimeError("a bug")])
def test_a_check_that_fails_ends_the_engine_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Otherwise the pod would stay out of service, and nothing would restart it."""

    def fail(_: ReadinessCheck) -> None:
        raise error

    monkeypatch.setattr(ReadinessCheck, "run", fail)
    with pytest.raises(EngineFault, match=r"redaction hook|RuntimeError"):
        supervisor(tmp_path, "exec sleep 600").run()
    assert not PodFolder(tmp_path).crashes.exists(), "the engine did not crash"


@pytest.mark.usefixtures("unchecked")
def test_a_launcher_that_is_asked_to_stop_ends_the_engine_and_succeeds(tmp_path: Path) -> None:
    engine = supervisor(tmp_path, "exec sleep 600")
    folder = engine._start.options.folder

    def stop_when_ready() -> None:
        while (state := folder.read_engine_state()) is None or not state.ready:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_when_ready, daemon=True).start()
    assert engine.run() == 0


@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.usefixtures("unchecked")
def test_an_engine_that_cannot_restore_its_draft_is_ended_and_the_launcher_succeeds(
    tmp_path: Path, damaged: bool
) -> None:
    engine = supervisor(tmp_path, "exec sleep 600")
    order = b"" if damaged else withdrawal(restart=True).to_json()
    write_atomically(PodFolder(tmp_path).withdrawal, order)
    assert engine.run() == 0


# crashes -------------------------------------------------------------------------------------------------------------

NOW = datetime(2026, 12, 2, 12, tzinfo=UTC)
MANIFEST_3 = CheckpointManifest(lineage=1, version=3, digest="a" * 64, files=(), step=0, trained_tokens=0, created=NOW)
DRAFT = DraftSpec(initial=PublishedHead(model="somebody/head"), lookup=LookupScope.REQUEST)


def crash(path: Path) -> None:
    """Run an engine that ends by itself, with version 3."""
    draft = path / "drafts" / "current"
    draft.mkdir(parents=True, exist_ok=True)
    (draft / MANIFEST).write_bytes(MANIFEST_3.to_json())
    assert supervisor(path, "sleep 0.1; exit 7").run() == 7


def next_start(path: Path, monkeypatch: pytest.MonkeyPatch, *, version: int, draft: DraftSpec = DRAFT) -> EngineStart:
    start = engine_start(path, draft=draft)
    files = StartFiles(draft=path, version=version, admin_key="k", traffic_secret="s")  # noqa: S106 - of the tests
    monkeypatch.setattr(launcher, "ensure_draft", lambda *_: None)
    monkeypatch.setattr(StartFiles, "read", lambda _: files)
    monkeypatch.setattr(launcher, "detect_machine", lambda _: start.state.machine)
    return prepare_start(start.settings, start.options)


@pytest.mark.usefixtures("unchecked")
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


@pytest.mark.usefixtures("unchecked")
def test_only_crashes_of_the_pods_own_draft_within_ten_minutes_count(tmp_path: Path) -> None:
    folder = PodFolder(tmp_path)
    write_atomically(folder.withdrawal, withdrawal(restart=False).to_json())
    crash(tmp_path)
    assert not folder.crashes.exists(), "a measurement's engine"
    first = EngineCrashes(version=3).plus(NOW)
    assert not first.plus(NOW + timedelta(minutes=11)).hold
    held = first.plus(NOW + timedelta(minutes=9))
    assert held.hold
    assert held.plus(NOW + timedelta(days=1)).hold, "an engine that is held stays so"
    folder.crashes.write_text("{")
    assert not folder.read_crashes(3).at
