"""One start of SGLang in an inference pod: its draft, command line and environment.

Invariants: the admin key is not in the command line. A start first reports "not ready" in ``engine.json``, because the
file of an engine that was killed still says "ready".
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from aurora_protocol.draft_records import LINEAGE_NUMBER, CheckpointManifest
from aurora_protocol.pod_settings import ADMIN_KEY, TRAFFIC_SECRET, ServingSettings
from aurora_protocol.tag_hash import tag_key
from aurora_runtime.cpu import launch_settings as cpu
from aurora_runtime.engine.machine import ISOLATED_PYTHON, detect_machine
from aurora_runtime.engine.speculation_flags import SPECULATION_PLUGIN, Eagle3, RoundController
from aurora_runtime.engine.speculation_settings import controller_of
from aurora_runtime.held_out_split import traffic_key
from aurora_runtime.serving.capture.settings import CAPTURE_VARIABLE, CaptureSettings
from aurora_runtime.serving.placeholder_draft import ensure_draft
from aurora_runtime.serving.pod_files import MANIFEST, PodFolder, new_boot, write_atomically
from aurora_runtime.serving.pod_records import EngineState

log = logging.getLogger(__name__)


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

    @property
    def tag_key(self) -> bytes:
        """Hashes the tags of requests. Equal in all pods of the speculator."""
        return tag_key(self.traffic_secret)

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
            tag_key=self.files.tag_key.hex(),
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
    for leftover in (options.folder.capture, options.folder.speculation):
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
