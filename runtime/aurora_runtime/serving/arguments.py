"""SGLang's command line for an inference pod: pure, so that it can be read and tested without running it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from aurora_api.pod import ServingSettings
from aurora_runtime.engine.speculation import Eagle3


def engine_arguments(
    settings: ServingSettings,
    *,
    draft: Path,
    version: int,
    port: int,
    host: str = "0.0.0.0",  # noqa: S104 - a pod serves its Service
    device_args: Sequence[str] = (),
    config: Path | None = None,
) -> list[str]:
    """Arguments for ``sglang serve``; the user's come last, so that they win.

    Args:
        draft: folder of the draft to start with, of version ``version``.
        device_args: what the device needs (:func:`aurora_runtime.cpu.engine.server_args` on a CPU).
        config: YAML file with further arguments: secrets go there and not into a command line that anyone can list.
    """
    target = settings.target
    arguments = ["--config", str(config)] if config else []
    arguments += ["--model-path", target.model, "--served-model-name", target.model]
    arguments += ["--revision", target.revision] if target.revision else []
    arguments += ["--dtype", target.dtype.value, "--host", host, "--port", str(port)]
    arguments += [*device_args, *Eagle3(draft, version, settings.draft).arguments(), "--enable-metrics"]
    return [*arguments, *settings.extra_args]


def value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """The last value given for ``flag``, spelt ``--f v`` or ``--f=v``."""
    found = None
    for at, argument in enumerate(arguments):
        if argument == flag and at + 1 < len(arguments):
            found = arguments[at + 1]
        elif argument.startswith(f"{flag}="):
            found = argument.removeprefix(f"{flag}=")
    return found
