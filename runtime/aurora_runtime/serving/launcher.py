"""Starts stock SGLang in an inference pod, checks that it may take requests, and stays as its parent.

Invariants: the pod is not ready before SGLang is ready, hides its admin key, has captured one probe request, and lets
the speculation controller decide its rounds where the speculator wants that (:class:`ReadinessCheck`). The admin key is
neither in a command line nor readable through the server. When SGLang ends, the launcher ends too, with an error unless
it was asked to stop.

On SIGTERM the launcher signals SGLang's main process only, because SGLang's children must go on while requests drain.

The agent of a withdrawn pod may order another start, when the engine cannot restore its draft. The launcher then ends
SGLang and itself, and Kubernetes starts the container again. A container that starts anew gets the startup probe, which
waits as long as a model takes to load. The liveness probe of a running container would not wait. A start first reports
"not ready" in ``engine.json``, because the file of an engine that was killed still says "ready".
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Final

from aurora_protocol.agent_api import ENGINE_PORT
from aurora_protocol.draft_records import LINEAGE_NUMBER, CheckpointManifest
from aurora_protocol.errors import InvalidRecord
from aurora_protocol.pod_settings import ADMIN_KEY, KEYS_FOLDER, STATE_FOLDER, TRAFFIC_SECRET, ServingSettings
from aurora_protocol.tag_hash import tag_key
from aurora_runtime.cpu import launch_settings as cpu
from aurora_runtime.engine.machine import ISOLATED_PYTHON, detect_machine
from aurora_runtime.engine.sglang_client import SGLangClient, open_session
from aurora_runtime.engine.speculation_flags import SPECULATION_PLUGIN, Eagle3, RoundController
from aurora_runtime.engine.speculation_settings import controller_of
from aurora_runtime.errors import EngineFault, EngineMismatch, TargetUnavailable
from aurora_runtime.held_out_split import traffic_key
from aurora_runtime.serving.capture.settings import CAPTURE_VARIABLE, PROBE_PREFIX, CaptureSettings
from aurora_runtime.serving.placeholder_draft import ensure_draft
from aurora_runtime.serving.pod_files import MANIFEST, EngineState, PodFolder, new_boot, write_atomically
from aurora_runtime.sglang_version import require_sglang

log = logging.getLogger(__name__)

ORDER_POLL_SECONDS: Final = 0.5
CRASH_GRACE_SECONDS: Final = 5.0
"""After a crash, SGLang's children get this long to end before the whole process group is killed."""
RESTART_STOP_SECONDS: Final = 60.0
"""How long SGLang may take to end for another start. A withdrawn pod has no requests to wait for."""
READY_POLL_SECONDS: Final = 0.5
PROBE_POLL_SECONDS: Final = 0.1
PROBE_TIMEOUT_SECONDS: Final = 120.0
PROBE_TOKENS: Final = 8


@dataclass(frozen=True)
class LauncherOptions:
    """The launcher's command line."""

    folder: PodFolder
    keys: Path
    port: int
    host: str


@dataclass(frozen=True)
class StartFiles:
    """The draft to start with and the engine's keys, as read from the pod's folders."""

    draft: Path
    version: int
    admin_key: str
    traffic_secret: str

    @property
    def traffic_key(self) -> bytes:
        """Decides which requests are traced and which are held out. Equal in all pods of the speculator."""
        return traffic_key(self.traffic_secret, LINEAGE_NUMBER)

    @classmethod
    def read(cls, options: LauncherOptions) -> StartFiles:
        draft = options.folder.current.resolve(strict=True)
        manifest = CheckpointManifest.from_json((draft / MANIFEST).read_bytes())
        admin_key, secret = ((options.keys / name).read_text().strip() for name in (ADMIN_KEY, TRAFFIC_SECRET))
        return cls(draft, manifest.version, admin_key, secret)


@dataclass(frozen=True)
class EngineStart:
    """One start of SGLang. ``state`` is the content of ``engine.json``, apart from ``ready``."""

    settings: ServingSettings
    options: LauncherOptions
    state: EngineState
    files: StartFiles

    @property
    def on_cpu(self) -> bool:
        return self.state.machine is not None and self.state.machine.device == "cpu"

    def report(self, *, ready: bool) -> None:
        """Write ``engine.json``."""
        _report(self.options.folder, self.state, ready=ready)

    @cached_property
    def controller(self) -> RoundController | None:
        """Decides the shape of each round. None: the shape is fixed. The first use writes the controller's file."""
        if not self.settings.draft.adaptive:
            return None
        folder, key = self.options.folder.path, self.files.traffic_key
        held = self.state.held_version
        return controller_of(self.settings.draft, folder, self.state.boot, traffic_key=key, held_version=held)

    def command(self, config: Path) -> list[str]:
        """SGLang's command line. ``config`` holds the admin key."""
        arguments = engine_arguments(
            self.settings,
            draft=self.files.draft,
            version=self.files.version,
            port=self.options.port,
            host=self.options.host,
            device_args=cpu.server_args(speculative=True) if self.on_cpu else [],
            config=config,
            controller=self.controller,
        )
        return [str(Path(sys.executable).with_name("sglang")), "serve", *arguments]

    def environment(self) -> dict[str, str]:
        """SGLang's environment: this process's, the capture settings, and the CPU engine's variables on a CPU."""
        environment = dict(os.environ) | ISOLATED_PYTHON
        if self.on_cpu:
            environment |= cpu.environment(environment)
        if plugins := environment.get("SGLANG_PLUGINS"):
            environment["SGLANG_PLUGINS"] = f"{plugins},aurora_capture,{SPECULATION_PLUGIN},aurora_vocabulary"
        environment.setdefault("SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION", "0")
        environment[CAPTURE_VARIABLE] = self._capture_settings().to_json().decode()
        if self.controller is not None:
            environment |= self.controller.environment()
        return environment

    def _capture_settings(self) -> CaptureSettings:
        capture = self.settings.capture
        return CaptureSettings(
            state_folder=str(self.options.folder.path),
            lineage=LINEAGE_NUMBER,
            pod=os.environ.get("POD_NAME", "pod"),
            boot=self.state.boot,
            traffic_key=self.files.traffic_key.hex(),
            tag_key=tag_key(self.files.traffic_secret).hex(),
            tokens_per_minute=capture.tokens_per_minute,
            state_type=capture.state_type,
            shard_seconds=capture.shard_seconds,
        )


def engine_arguments(
    settings: ServingSettings,
    *,
    draft: Path,
    version: int,
    port: int,
    host: str = "0.0.0.0",  # noqa: S104 - a pod serves its Service
    device_args: Sequence[str] = (),
    config: Path | None = None,
    controller: RoundController | None = None,
) -> list[str]:
    """Arguments for ``sglang serve``. The user's arguments come last, so that they win.

    The limit of running requests is given, because by itself SGLang would limit an engine that speculates to 48
    (`srt/arg_groups/speculative_hook.py:1086`).

    Args:
        draft: folder of the draft to start with.
        version: version of that draft.
        device_args: arguments for the device (:func:`aurora_runtime.cpu.launch_settings.server_args` on a CPU).
        config: YAML file with further arguments. The file holds the secrets, because any process can read a command
            line.
        controller: decides the shape of each round of a draft. None: the shape is fixed.
    """
    target = settings.target
    arguments = ["--config", str(config)] if config else []
    arguments += ["--model-path", target.model, "--served-model-name", target.model]
    arguments += ["--revision", target.revision] if target.revision else []
    arguments += ["--dtype", target.dtype.value, "--host", host, "--port", str(port)]
    arguments += ["--max-running-requests", str(settings.max_running_requests)]
    speculation = Eagle3(draft, version, settings.draft, controller).arguments()
    arguments += [*device_args, *speculation, "--enable-metrics"]
    return [*arguments, *settings.extra_args]


def prepare_start(settings: ServingSettings, options: LauncherOptions) -> EngineStart:
    """Report the start as not ready, remove the files of the previous start, and read what the new one needs.

    A pod without a draft gets a placeholder. Raises :class:`TargetUnavailable` when none can be made.
    """
    state = EngineState(boot=new_boot(), ready=False, started_at=datetime.now(UTC))
    _report(options.folder, state, ready=False)
    state = state.model_copy(update={"machine": detect_machine(settings.device)})
    for leftover in (options.folder.capture, options.folder.speculation, options.folder.withdrawal):
        leftover.unlink(missing_ok=True)
    ensure_draft(options.folder, settings)
    files = StartFiles.read(options)
    # Nothing of ours runs in the rounds of a draft of fixed shape.
    if settings.draft.adaptive and options.folder.read_crashes(files.version).hold:
        log.error("the engine crashed twice within ten minutes with version %d: it does not speculate", files.version)
        state = state.model_copy(update={"held_version": files.version})
    return EngineStart(settings, options, state, files)


def _report(folder: PodFolder, state: EngineState, *, ready: bool) -> None:
    write_atomically(folder.engine, state.model_copy(update={"ready": ready}).to_json())


@dataclass(frozen=True)
class ReadinessCheck:
    """The checks of one engine start."""

    start: EngineStart
    process: subprocess.Popen[bytes]

    def run(self) -> None:
        """Return once the engine may take requests. Call this method from a thread without an event loop.

        Raises :class:`EngineFault` when a check fails. The message includes the reason that the capture plugin left.
        """
        try:
            asyncio.run(self._check())
        except EngineFault as error:
            capture = self.start.options.folder.read_capture_state()
            if capture is None or capture.ok:
                raise
            raise EngineFault(f"{error}; the capture plugin refused: {capture.error}") from error

    async def _check(self) -> None:
        async with open_session() as session:
            client = SGLangClient(session, f"http://127.0.0.1:{self.start.options.port}")
            await self._wait_ready(client)
            await self._check_redaction(client)
            await self._check_capture(client)
            self._check_controller()

    async def _wait_ready(self, client: SGLangClient) -> None:
        """Wait without a time limit: the pod's startup probe limits how long a model may take to load."""
        while self.process.poll() is None:
            if await client.is_ready():
                return
            await asyncio.sleep(READY_POLL_SECONDS)
        raise EngineFault(f"SGLang ended with {self.process.returncode} before it was ready")

    async def _check_redaction(self, client: SGLangClient) -> None:
        """Raise :class:`EngineFault` when SGLang shows its admin key to everybody."""
        if self.start.files.admin_key in await client.server_info():
            raise EngineFault("SGLang shows the admin key in /server_info: the redaction hook is not in place")

    async def _check_capture(self, client: SGLangClient) -> None:
        """Send one request and wait until the plugin has captured its verify rounds. Raises :class:`EngineFault`."""
        body = {
            "rid": PROBE_PREFIX + secrets.token_hex(8),
            "input_ids": [1, 2, 3, 4],
            "sampling_params": {"temperature": 0, "max_new_tokens": PROBE_TOKENS, "ignore_eos": True},
        }
        deadline = time.monotonic() + PROBE_TIMEOUT_SECONDS
        await client.generate(body, timeout_seconds=PROBE_TIMEOUT_SECONDS)
        while time.monotonic() < deadline and self.process.poll() is None:
            capture = self.start.options.folder.read_capture_state()
            if capture is not None and capture.boot == self.start.state.boot:
                if capture.probe_records > 0:
                    return
                if not capture.ok:
                    break
            await asyncio.sleep(PROBE_POLL_SECONDS)
        raise EngineFault("no verify round of the probe request was captured: is the capture plugin loaded?")

    def _check_controller(self) -> None:
        """Raise :class:`EngineFault` when the controller should decide the rounds and does not.

        SGLang would then choose the shapes by a rule of its own, which can be slower than no speculation. The
        controller reports once when SGLang has built its worker, which is before SGLang is ready.
        """
        if self.start.controller is None:
            return
        controller = self.start.options.folder.read_speculation_state()
        if controller is None or controller.boot != self.start.state.boot:
            raise EngineFault("the speculation controller has not reported: is the plugin aurora_speculation loaded?")
        if not controller.ok:
            raise EngineFault(
                f"the speculation controller refused: {controller.error}. Remove what it names from"
                " serving.extraArgs or serving.template, or set draft.shape to Fixed"
            )


class EngineSupervisor:
    """SGLang's main process, and the thread that watches it."""

    def __init__(self, start: EngineStart, process: subprocess.Popen[bytes]) -> None:
        self._start = start
        self._process = process
        self._stop_requested = threading.Event()
        self._failure: EngineFault | None = None

    def run(self) -> int:
        """Wait until SGLang ends. Returns the launcher's exit code. Raises :class:`EngineFault` when a check failed."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle_signal)
        threading.Thread(target=self._watch, daemon=True).start()
        code = self._process.wait()
        if not self._stop_requested.is_set() and self._failure is None:
            self._record_crash()
        self._start.report(ready=False)
        time.sleep(0 if self._stop_requested.is_set() else CRASH_GRACE_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        if self._stop_requested.is_set():
            return 0
        if self._failure is not None:
            raise self._failure
        log.error("SGLang ended by itself with exit code %d", code)
        return code if code > 0 else 1  # SGLang's exit code is 0 even after a fatal error in a scheduler

    def _handle_signal(self, _number: int, _frame: types.FrameType | None) -> None:
        self._stop_requested.set()
        self._terminate()

    def _record_crash(self) -> None:
        """Count the end of an engine that nobody asked to end, unless it served a measurement."""
        folder = self._start.options.folder
        if folder.withdrawal.exists():
            return
        with contextlib.suppress(OSError, InvalidRecord):
            version = CheckpointManifest.from_json((folder.current / MANIFEST).read_bytes()).version
            write_atomically(folder.crashes, folder.read_crashes(version).plus(datetime.now(UTC)).to_json())

    def _terminate(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    def _watch(self) -> None:
        try:
            self._check_readiness()
            self._watch_restart_orders()
        except Exception as error:  # the thread's outermost loop: without the thread the pod would stay out of service
            log.exception("the launcher cannot watch SGLang any more: stopping SGLang")
            self._failure = EngineFault(f"the launcher could not watch SGLang any more ({type(error).__name__})")
            self._terminate()

    def _check_readiness(self) -> None:
        """Report the engine ready, or end it and keep the reason."""
        try:
            ReadinessCheck(self._start, self._process).run()
        except EngineFault as error:
            self._failure = error
            self._terminate()
            return
        self._start.report(ready=True)
        if self._process.poll() is not None:
            self._start.report(ready=False)  # SGLang ended meanwhile, and the main thread may have reported that first
            return
        log.info("the engine is ready (boot %s)", self._start.state.boot)

    def _watch_restart_orders(self) -> None:
        """End SGLang when the agent orders another start."""
        while self._process.poll() is None and not self._is_another_start_ordered():
            time.sleep(ORDER_POLL_SECONDS)
        if self._process.poll() is not None:
            return
        log.info("the agent ordered another start: stopping SGLang")
        self._stop_requested.set()
        self._terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(RESTART_STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def _is_another_start_ordered(self) -> bool:
        """Whether a withdrawn engine cannot restore its draft, or nothing shows any more which draft it holds."""
        try:
            withdrawal = self._start.options.folder.read_withdrawal()
        except OSError:
            return False
        return withdrawal is not None and withdrawal.restart and withdrawal.boot in ("", self._start.state.boot)


@contextlib.contextmanager
def _private_config(admin_key: str) -> Iterator[Path]:
    """SGLang's configuration file with the admin key, readable by this user only."""
    with tempfile.TemporaryDirectory(prefix="aurora-") as private:
        config = Path(private) / "keys.yaml"
        config.touch(mode=0o600)
        config.write_text(json.dumps({"admin-api-key": admin_key}))
        yield config


def serve(settings: ServingSettings, options: LauncherOptions) -> int:
    """Run SGLang until it ends. Returns the launcher's exit code.

    The first process of a container ignores a signal that it does not handle, so signals are handled from the start.

    Raises:
        EngineMismatch: an SGLang is installed that this runtime does not support.
        EngineFault: the engine may not take requests.
        TargetUnavailable: the pod has no draft, and the target's ``config.json`` is missing or cannot be used.
    """
    sglang = require_sglang("the launcher")
    for number in (signal.SIGTERM, signal.SIGINT):  # until the supervisor handles them: nothing runs yet
        signal.signal(number, lambda _number, _frame: sys.exit(0))
    start = prepare_start(settings, options)
    with _private_config(start.files.admin_key) as config:
        log.info("starting SGLang %s, draft version %d", sglang, start.files.version)
        process = subprocess.Popen(start.command(config), env=start.environment(), start_new_session=True)
        return EngineSupervisor(start, process).run()


def parse_options(arguments: list[str] | None) -> LauncherOptions:
    parser = argparse.ArgumentParser(
        prog="aurora-serve",
        description="Run SGLang in an inference pod of an AuroraSpeculator.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--state", type=Path, default=Path(STATE_FOLDER), help="folder shared with the agent")
    parser.add_argument("--keys", type=Path, default=Path(KEYS_FOLDER), help="folder with the admin key")
    parser.add_argument("--port", type=int, default=ENGINE_PORT, help="port of SGLang")
    # Clients reach the engine by the pod's address, through the Service.
    parser.add_argument("--host", default="0.0.0.0", help="address that SGLang listens on")  # noqa: S104
    options = parser.parse_args(arguments)
    return LauncherOptions(PodFolder(options.state), options.keys, options.port, options.host)


def main(arguments: list[str] | None = None) -> int:
    options = parse_options(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        return serve(ServingSettings.from_env(), options)
    except (EngineFault, EngineMismatch, TargetUnavailable) as error:
        log.error("%s", error)  # noqa: TRY400 - the message is the whole story
        return 1


if __name__ == "__main__":
    sys.exit(main())
