"""The records that the containers of an inference pod leave for each other in the pod's shared folder.

This module imports neither torch nor sglang, because the agent imports it. :mod:`aurora_runtime.serving.pod_files`
holds the paths of the records.
"""

from __future__ import annotations

import hashlib

from pydantic import Field

from aurora_api.base import Timestamp
from aurora_protocol.agent_api import EngineMode, Machine, measurement_pass
from aurora_protocol.record import Record, Sha256


class EngineState(Record):
    """``engine.json``: the launcher reports the engine start that is running."""

    boot: str = Field(description="Random id of this engine start.")
    ready: bool = Field(description="Whether the engine answers requests and, with a draft, captures traces.")
    started_at: Timestamp
    mode: EngineMode = EngineMode.DRAFT
    order_id: str = Field(default="", description="The ModeOrder that this start follows.")
    machine: Machine | None = None


class ModeOrder(Record):
    """``mode.json``: the agent orders the launcher to run the engine in another mode.

    A new order ends the engine, and Kubernetes starts its container again.
    """

    mode: EngineMode = EngineMode.DRAFT
    order_id: str = Field(default="", description="Random. A new id orders a new start, even in the same mode.")


class CaptureState(Record):
    """``capture.json``: heartbeat and counters of the capture plugin since the engine started."""

    boot: str
    ok: bool = Field(description="False: the plugin refused to capture; `error` says why.")
    error: str = ""
    probe_records: int = Field(default=0, description="Captured verify rounds of the launcher's probe request.")
    captured_records: int = 0
    dropped_records: int = 0
    hook_errors: int = Field(default=0, description="Exceptions inside hooks. Each loses the records of one batch.")
    traced_requests: int = 0
    traced_answer_tokens: int = 0
    shards_written: int = 0
    shards_dropped: int = 0
    updated_at: Timestamp


class Withdrawal(Record):
    """``withdrawal.json``: the pod is withdrawn from its Service. The pod is not ready while the file exists.

    The agent writes the file before it loads any trial draft. The agent removes the file once it has confirmed that
    the engine holds the current draft again.
    """

    measurement: str
    drained: bool = Field(default=False, description="Whether the requests of clients have ended.")
    boot: str = Field(description="The engine start in which `current_checksum` was read.")
    current_version: int = Field(description="The draft to restore: the pod's current draft.")
    current_digest: Sha256
    current_checksum: str
    trial_boot: str = Field(default="", description="The engine start that may hold a trial draft.")
    pass_sha256: Sha256 = Field(description="Digest of the pass that the measurement's requests carry. No secret.")


def pass_digest(token: str, measurement: str) -> str:
    """The digest of a measurement's pass, as :class:`Withdrawal` keeps it."""
    return hashlib.sha256(measurement_pass(token, measurement).encode()).hexdigest()
