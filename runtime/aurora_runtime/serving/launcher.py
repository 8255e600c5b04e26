"""Starts stock SGLang in an inference pod, proves that it captures, and then stays as its parent.

Invariants: the pod is not ready before one request went through speculation and capture; the admin key is neither in a
command line nor readable through the server; SIGTERM reaches SGLang's main process only, because its children must
outlive it while requests drain; capture and the agent see the file ``ending`` then, and carry away what they have; when
SGLang ends, so does this process, and not with success unless it was told to.

The agent of a withdrawn pod may order another mode (without the draft, to measure what the draft is worth). SGLang is
ended then, and this process with it, so that Kubernetes starts the container anew: its startup probe waits for a model
to load as long as it takes, where the liveness probe of a container that stays would not.
"""

from __future__ import annotations

import argparse
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
import urllib.error
import urllib.request
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, Final

from aurora_protocol.agent_api import ENGINE_PORT, EngineMode
from aurora_protocol.draft_records import CheckpointManifest, Lineage
from aurora_protocol.pod_settings import ADMIN_KEY, KEYS_FOLDER, STATE_FOLDER, ServingSettings
from aurora_runtime.cpu import launch_settings as cpu
from aurora_runtime.engine import SGLANG_VERSION
from aurora_runtime.engine.machine import machine
from aurora_runtime.errors import EngineFault
from aurora_runtime.serving.pod_files import (
    CAPTURE_VARIABLE,
    PROBE_PREFIX,
    CaptureSettings,
    CaptureState,
    EngineState,
    ModeOrder,
    PodFolder,
    new_boot,
    write_atomically,
)
from aurora_runtime.serving.sglang_arguments import engine_arguments

log = logging.getLogger(__name__)

POLL_S: Final = 0.5
PROBE_TIMEOUT_S: Final = 120.0
PROBE_TOKENS: Final = 8
GROUP_GRACE_S: Final = 5.0
ORDERED_STOP_S: Final = 60.0
"""A withdrawn pod has no requests to wait for."""


@dataclass(frozen=True)
class Options:
    """What differs between a pod and a test."""

    folder: PodFolder
    keys: Path
    port: int
    host: str


def capture_settings(
    settings: ServingSettings, options: Options, boot: str, lineage: Lineage, mode: EngineMode
) -> CaptureSettings:
    return CaptureSettings(
        state=str(options.folder.path),
        lineage=lineage.number,
        pod=os.environ.get("POD_NAME", "pod"),
        boot=boot,
        sample_ratio=settings.capture.sample_ratio,
        top_k=settings.capture.top_tokens,
        shard_seconds=settings.capture.shard_seconds,
        shard_tokens=settings.capture.shard_tokens,
        hooks=mode is EngineMode.DRAFT,
    )


def engine_environment(capture: CaptureSettings, *, on_cpu: bool) -> dict[str, str]:
    """SGLang's environment: this one, the capture settings, and on a CPU what the CPU engine needs."""
    environment = dict(os.environ)
    if on_cpu:
        environment |= cpu.environment(environment)
    if plugins := environment.get("SGLANG_PLUGINS"):
        environment["SGLANG_PLUGINS"] = f"{plugins},aurora_capture,aurora_vocabulary"
    environment.setdefault("SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION", "0")
    environment[CAPTURE_VARIABLE] = capture.to_json().decode()
    return environment


class Engine:
    """SGLang's main process and the requests by which the launcher judges it."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self._url = f"http://127.0.0.1:{port}"

    def call(self, path: str, body: dict[str, Any] | None = None, *, timeout: float = 10.0) -> bytes:
        """GET, or POST with a body; raises :class:`EngineFault`."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self._url + path, data=data, headers=headers)  # noqa: S310 - http, local
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:  # noqa: S310 - http, local
                return bytes(answer.read())
        except (urllib.error.URLError, OSError) as error:
            raise EngineFault(f"SGLang {path}: {error}") from error

    def wait_ready(self) -> None:
        """Until SGLang says so; how long a model may take to load is the startup probe's business."""
        while self.process.poll() is None:
            with contextlib.suppress(EngineFault):
                self.call("/ready")
                return
            time.sleep(POLL_S)
        raise EngineFault(f"SGLang ended with {self.process.returncode} before it was ready")

    def check_secret(self, key: str) -> None:
        """Raise :class:`EngineFault` when SGLang would tell its admin key to whoever asks."""
        if key in self.call("/server_info", timeout=60).decode(errors="replace"):
            raise EngineFault("SGLang shows the admin key in /server_info: the redaction hook is not in place")

    def probe(self, folder: PodFolder, boot: str) -> None:
        """Send one request and wait until capture has seen its verify rounds; raises :class:`EngineFault`."""
        body = {
            "rid": PROBE_PREFIX + secrets.token_hex(8),
            "input_ids": [1, 2, 3, 4],
            "sampling_params": {"temperature": 0, "max_new_tokens": PROBE_TOKENS, "ignore_eos": True},
        }
        deadline = time.monotonic() + PROBE_TIMEOUT_S
        self.call("/generate", body, timeout=PROBE_TIMEOUT_S)
        while time.monotonic() < deadline and self.process.poll() is None:
            state = read_capture(folder)
            if state is not None and state.boot == boot:
                if state.probe_records > 0:
                    return
                if not state.ok:
                    break
            time.sleep(POLL_S / 5)
        raise EngineFault("the probe request yielded no captured verify round: is the capture plugin loaded?")


def read_capture(folder: PodFolder) -> CaptureState | None:
    try:
        return CaptureState.from_json(folder.capture.read_bytes())
    except FileNotFoundError:
        return None


def _say(folder: PodFolder, state: EngineState, *, ready: bool) -> None:
    write_atomically(folder.engine, state.model_copy(update={"ready": ready}).to_json())


def _admit(engine: Engine, folder: PodFolder, started: EngineState, key: str, failure: list[str]) -> None:
    """Runs beside the wait for SGLang's end: declare the engine ready, or end it and leave the reason."""
    try:
        engine.wait_ready()
        engine.check_secret(key)
        if started.mode is EngineMode.DRAFT:
            engine.probe(folder, started.boot)
    except EngineFault as error:
        state = read_capture(folder)
        failure.append(str(error) if state is None or state.ok else f"{error}; capture refused: {state.error}")
        with contextlib.suppress(ProcessLookupError):
            engine.process.terminate()
        return
    _say(folder, started, ready=True)
    log.info("the engine is up in mode %s (boot %s)", started.mode.value, started.boot)


def _obey(process: subprocess.Popen[bytes], folder: PodFolder, obeyed: ModeOrder, told: threading.Event) -> None:
    """Runs beside the wait for SGLang's end: end it when another start is ordered."""
    while process.poll() is None and folder.ordered() == obeyed:
        time.sleep(POLL_S)
    if process.poll() is not None:
        return
    log.info("another start is ordered: SGLang is ended")
    told.set()
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(ORDERED_STOP_S)
    with contextlib.suppress(ProcessLookupError):
        process.kill()


def serve(settings: ServingSettings, options: Options) -> int:
    """Run SGLang until it ends; the exit code for this process."""
    if (found := version_of("sglang")) != SGLANG_VERSION:
        raise EngineFault(f"SGLang {found} is installed; this runtime is made for {SGLANG_VERSION}")
    folder = options.folder
    order = folder.ordered()
    started = EngineState(boot=new_boot(), ready=False, started=datetime.now(UTC), mode=order.mode, order=order.order)
    _say(folder, started, ready=False)  # at once: an engine that was killed must not be called ready for long
    where = machine(settings.device)
    started = started.model_copy(update={"machine": where})
    for former in (folder.capture, folder.ending):
        former.unlink(missing_ok=True)
    draft = folder.current.resolve(strict=True)
    manifest = CheckpointManifest.from_json((draft / "manifest.json").read_bytes())
    lineage = Lineage.from_json(folder.lineage.read_bytes())
    key = (options.keys / ADMIN_KEY).read_text().strip()
    on_cpu = where.device == "cpu"
    capture = capture_settings(settings, options, started.boot, lineage, order.mode)
    told = threading.Event()
    failure: list[str] = []
    with tempfile.TemporaryDirectory(prefix="aurora-") as private:
        config = Path(private) / "keys.yaml"
        config.touch(mode=0o600)
        config.write_text(json.dumps({"admin-api-key": key}))
        arguments = engine_arguments(
            settings,
            draft=draft,
            version=manifest.version,
            port=options.port,
            host=options.host,
            device_args=cpu.server_args(speculative=order.mode is not EngineMode.OFF) if on_cpu else [],
            config=config,
            mode=order.mode,
        )
        log.info("starting SGLang %s in mode %s, draft version %d", found, order.mode.value, manifest.version)
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("sglang")), "serve", *arguments],
            env=engine_environment(capture, on_cpu=on_cpu),
            start_new_session=True,
        )

        def stop(_number: int, _frame: types.FrameType | None) -> None:
            told.set()
            with contextlib.suppress(OSError):
                folder.ending.touch()
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        engine = Engine(process, options.port)
        threading.Thread(target=_admit, args=(engine, folder, started, key, failure), daemon=True).start()
        threading.Thread(target=_obey, args=(process, folder, order, told), daemon=True).start()
        code = process.wait()
    _say(folder, started, ready=False)
    time.sleep(0 if told.is_set() else GROUP_GRACE_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    if told.is_set():
        return 0
    if failure:
        raise EngineFault(failure[0])
    log.error("SGLang ended by itself with %d", code)
    return code if code > 0 else 1  # its exit code is 0 even after a fatal error in a scheduler


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run SGLang in an inference pod of an AuroraSpeculator.")
    parser.add_argument("--state", type=Path, default=Path(STATE_FOLDER), help="folder shared with the agent")
    parser.add_argument("--keys", type=Path, default=Path(KEYS_FOLDER), help="folder with the admin key")
    parser.add_argument("--port", type=int, default=ENGINE_PORT)
    parser.add_argument("--host", default="0.0.0.0")  # noqa: S104 - a pod serves its Service
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        return serve(
            ServingSettings.from_env(), Options(PodFolder(options.state), options.keys, options.port, options.host)
        )
    except EngineFault as error:
        log.error("%s", error)  # noqa: TRY400 - the message is the whole story
        return 1


if __name__ == "__main__":
    sys.exit(main())
