"""Where a measurement was taken, and the record that keeps it.

Invariant: a figure is never without its environment; what was measured on a CPU says so.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
from datetime import UTC, datetime
from pathlib import Path

from aurora_api.pod import ValidationSettings
from aurora_api.records import Environment, Evidence, Registration, UsedBaseline
from aurora_api.speculator import Device
from aurora_runtime.validation.measure import Measurement


def choose_device(asked: Device) -> str:
    """``cpu`` or ``cuda``: what was asked for, or CUDA when there is a GPU."""
    if asked is not Device.AUTO:
        return asked.value
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _hardware(device: str) -> str:
    if device == "cuda":
        import torch

        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{os.cpu_count()} x {line.split(':', 1)[1].strip()}"
    return f"{os.cpu_count()} x {platform.machine()}"


def environment(settings: ValidationSettings, device: str) -> Environment:
    """The machine, the engine and the draft's shape."""
    return Environment(
        hardware=_hardware(device),
        device="cuda" if device == "cuda" else "cpu",
        engine=importlib.metadata.version("sglang"),
        torch=importlib.metadata.version("torch"),
        dtype=settings.target.dtype.value,
        draft_steps=settings.draft.steps,
        draft_topk=settings.draft.top_k,
        draft_tokens=settings.draft.draft_tokens,
        image=settings.image,
        shape=settings.shape,
        load_average=round(os.getloadavg()[0], 2),
    )


def build(
    settings: ValidationSettings,
    measurement: Measurement,
    *,
    candidate: Registration,
    active: Registration,
    where: Environment,
    prompts_sha256: str,
    started: datetime,
    baseline: UsedBaseline | None = None,
) -> Evidence:
    """The evidence record of a finished measurement; its verdict is the last round's."""
    return Evidence(
        version=settings.candidate,
        attempt=settings.attempt,
        lineage=candidate.lineage,
        candidate_digest=candidate.digest,
        active_version=active.version,
        active_digest=active.digest,
        samples=tuple(measurement.samples),
        baseline=baseline,
        equality=measurement.equalities(),
        accept_length=measurement.accept_length(),
        environment=where,
        prompts_sha256=prompts_sha256,
        verdict=measurement.verdicts[-1],
        started=started,
        finished=datetime.now(UTC),
    )
