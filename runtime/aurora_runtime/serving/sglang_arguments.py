"""SGLang's command line for an inference pod. Pure, so that a test can check it without running SGLang."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from aurora_protocol.pod_settings import ServingSettings
from aurora_runtime.engine.speculation_flags import Eagle3, RoundController


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
