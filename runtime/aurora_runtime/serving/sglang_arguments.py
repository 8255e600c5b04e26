"""SGLang's command line for an inference pod: pure, so that it can be read and tested without running it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from aurora_protocol.agent_api import EngineMode
from aurora_protocol.pod_settings import ServingSettings
from aurora_runtime.engine.speculation_flags import Eagle3, Ngram


def engine_arguments(
    settings: ServingSettings,
    *,
    draft: Path,
    version: int,
    port: int,
    host: str = "0.0.0.0",  # noqa: S104 - a pod serves its Service
    device_args: Sequence[str] = (),
    config: Path | None = None,
    mode: EngineMode = EngineMode.DRAFT,
) -> list[str]:
    """Arguments for ``sglang serve``; the user's come last, so that they win.

    Args:
        draft: folder of the draft to start with, of version ``version``.
        device_args: what the device needs (:func:`aurora_runtime.cpu.launch_settings.server_args` on a CPU).
        mode: without the draft only to measure what it is worth.
        config: YAML file with further arguments: secrets go there and not into a command line that anyone can list.
    """
    target = settings.target
    arguments = ["--config", str(config)] if config else []
    arguments += ["--model-path", target.model, "--served-model-name", target.model]
    arguments += ["--revision", target.revision] if target.revision else []
    arguments += ["--dtype", target.dtype.value, "--host", host, "--port", str(port)]
    speculation = {
        EngineMode.DRAFT: Eagle3(draft, version, settings.draft).arguments(),
        EngineMode.OFF: [],
        EngineMode.NGRAM: Ngram(settings.draft.tokens_per_round).arguments(),
    }
    arguments += [*device_args, *speculation[mode], "--enable-metrics"]
    return [*arguments, *settings.extra_args]
