"""SGLang's command line, the redaction of its keys, and when capture refuses to install its hooks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from aurora_api.v1alpha1.capture import CaptureSpec
from aurora_api.v1alpha1.draft import DraftSpec
from aurora_api.v1alpha1.target import TargetSpec
from aurora_protocol.agent_api import EngineMode
from aurora_protocol.pod_settings import ServingSettings, StoreSettings
from aurora_runtime import sglang_version
from aurora_runtime.errors import EngineMismatch
from aurora_runtime.serving import capture_plugin, log_redaction
from aurora_runtime.serving.pod_files import new_boot
from aurora_runtime.serving.sglang_arguments import engine_arguments
from aurora_runtime.sglang_version import SGLANG_VERSION


def settings(**options: object) -> ServingSettings:
    return ServingSettings(
        namespace="n",
        name="s",
        target=TargetSpec(model="org/model", revision="abc"),
        draft=DraftSpec(steps=2, branching=4, draft_tokens=8),
        capture=CaptureSpec(),
        store=StoreSettings(bucket="bucket", root="root"),
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
        "--speculative-eagle-topk": "4",
        "--speculative-num-draft-tokens": "8",
        "--weight-version": "3",
        "--custom-weight-loader": "aurora_runtime.engine.weight_loader.load_draft",
    }.items():
        assert arguments[arguments.index(flag) + 1] == value
    assert "--enable-metrics" in arguments


def test_the_users_arguments_win() -> None:
    arguments = engine_arguments(
        settings(extra_args=["--dtype=float16", "--tp-size", "2"]), draft=Path("/d"), version=0, port=1
    )
    assert arguments[-3:] == ["--dtype=float16", "--tp-size", "2"]


def test_the_modes_of_a_measurement_differ_in_speculation_alone() -> None:
    def arguments(mode: EngineMode) -> set[str]:
        return set(engine_arguments(settings(), draft=Path("/drafts/v3"), version=3, port=1, mode=mode))

    draft, off, ngram = (arguments(mode) for mode in (EngineMode.DRAFT, EngineMode.OFF, EngineMode.NGRAM))
    assert off < draft
    assert not any(argument.startswith("--speculative") for argument in off)
    assert ngram - off == {"--speculative-algorithm", "NGRAM", "--speculative-num-draft-tokens", "8"}


def test_keys_are_hidden_wherever_sglang_shows_its_arguments() -> None:
    shown = log_redaction.after_secrets(
        {
            "admin_api_key": "k1",
            "api_key": None,
            "nested": {"api_key": "k2"},
            "launch_command": "x --admin-api-key k1 y",
        }
    )
    assert shown == {
        "admin_api_key": "<redacted>",
        "api_key": None,
        "nested": {"api_key": "<redacted>"},
        "launch_command": "x --admin-api-key <redacted> y",
    }
    assert log_redaction.after_command_line("--api-key=k2 --port 1") == "--api-key=<redacted> --port 1"


def test_boots_sort_by_age() -> None:
    assert len({new_boot() for _ in range(100)}) == 100
    assert len(new_boot()) == 16


def test_capture_refuses_another_sglang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sglang_version, "installed_version", lambda _: "0.5.24")
    with pytest.raises(EngineMismatch, match=r"0\.5\.24"):
        capture_plugin.check_sglang()


def test_capture_refuses_a_moved_or_changed_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sglang_version, "installed_version", lambda _: SGLANG_VERSION)
    monkeypatch.setattr(capture_plugin, "SIGNATURES", {"json.dumpz": ("obj",)})
    with pytest.raises(EngineMismatch, match=r"no json\.dumpz"):
        capture_plugin.check_sglang()
    monkeypatch.setattr(capture_plugin, "SIGNATURES", {"shlex.quote": ("s", "more")})
    with pytest.raises(EngineMismatch, match="the hook needs s, more"):
        capture_plugin.check_sglang()
    monkeypatch.setattr(capture_plugin, "SIGNATURES", {"shlex.quote": ("s",)})
    capture_plugin.check_sglang()


def test_without_settings_the_plugin_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AURORA_CAPTURE", raising=False)
    monkeypatch.setattr(capture_plugin, "check_sglang", lambda: pytest.fail("nothing may be checked"))
    capture_plugin.install()


def test_the_agent_imports_neither_torch_nor_sglang() -> None:
    code = "import sys, aurora_runtime.serving.agent.main; sys.exit(bool({'torch', 'sglang'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_call_that_hangs_does_not_keep_a_signalled_agent_running() -> None:
    code = """if True:
        import asyncio, time
        from aurora_runtime.serving.agent import main
        async def hang():
            main._begin_shutdown(asyncio.Event(), 0)
            await asyncio.to_thread(time.sleep, 3600)
        main.EXIT_MARGIN_SECONDS = 0.1
        asyncio.run(hang())
        """
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=600).returncode == 1


@pytest.mark.parametrize("signalled", [True, False])
def test_an_agent_that_ends_waits_for_no_upload_that_hangs(tmp_path: Path, signalled: bool) -> None:
    code = f"""if True:
        import argparse, asyncio, os, signal, time
        from datetime import UTC, datetime
        from pathlib import Path
        from aurora_protocol.pod_settings import ADMIN_KEY, AGENT_TOKEN
        from aurora_runtime.serving.agent import main
        from aurora_runtime.serving.pod_files import PodFolder, write_atomically
        from aurora_runtime.serving.pod_records import EngineState
        from aurora_store import Registry
        from tests.unit.fakes import FolderObjects
        from tests.unit.serving.agent.test_uploader import shard
        from tests.unit.serving.test_launcher import settings
        path, began = Path({str(tmp_path)!r}), asyncio.Event()

        class Slow(FolderObjects):
            def put(self, key, data):
                if {signalled}:
                    os.kill(os.getpid(), signal.SIGTERM)
                loop.call_soon_threadsafe(began.set)
                time.sleep(3600)

        async def fail(self):
            await began.wait()
            if not {signalled}:
                raise OSError("a part of the agent fails")
            await asyncio.sleep(3600)

        async def serve():
            global loop
            loop = asyncio.get_running_loop()
            await main.serve(settings(), options)

        main._open_registry = lambda _: Registry(Slow(path / "store"))
        main.MeasurementLease.run = fail
        main.EXIT_MARGIN_SECONDS = 0.2
        folder = PodFolder(path)
        folder.spool.mkdir()
        shard(folder.spool, 0)
        state = EngineState(boot="b", ready=True, started_at=datetime.now(UTC))
        write_atomically(folder.engine, state.to_json())
        for name in (ADMIN_KEY, AGENT_TOKEN):
            (path / name).write_text("secret")
        options = argparse.Namespace(
            state=path, keys=path, port=0, host="127.0.0.1", engine_port=1,
            shutdown_seconds=3600.0, signal_skew_seconds=0.1,
        )
        asyncio.run(serve())
        """
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=300).returncode == 1


def test_the_launcher_imports_neither_torch_nor_sglang() -> None:
    code = "import sys, aurora_runtime.serving.launcher; sys.exit(bool({'torch', 'sglang'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
