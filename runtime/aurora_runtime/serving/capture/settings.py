"""The capture plugin's settings, which the launcher passes to SGLang's processes in ``AURORA_CAPTURE``."""

from __future__ import annotations

from typing import Final

from pydantic import Field

from aurora_protocol.pod_settings import StateType
from aurora_protocol.record import Record
from aurora_runtime.serving.pod_files import MAX_SPOOL_BYTES

CAPTURE_VARIABLE: Final = "AURORA_CAPTURE"
PROBE_PREFIX: Final = "aurora-probe-"
"""Prefix of the ids of the launcher's probe requests. A probe proves that capture works. No shard holds a probe."""


class CaptureSettings(Record):
    """The value of ``AURORA_CAPTURE``."""

    state_folder: str = Field(description="The pod's shared folder.")
    lineage: int = Field(ge=1)
    pod: str
    boot: str = Field(description="Random id of this engine start.")
    traffic_key: str = Field(
        default="", repr=False, description="Hexadecimal key of the draws: which requests are traced, and held out."
    )
    tag_key: str = Field(default="", repr=False, description="Hexadecimal key that hashes the tags of requests.")
    tokens_per_minute: int = Field(default=0, ge=0, description="Tokens to trace in a minute until the first order.")
    top_tokens: int = Field(default=32, ge=1, description="Most likely target tokens kept for each position.")
    state_type: StateType = Field(default=StateType.FLOAT8, description="How a shard stores hidden states.")
    shard_seconds: float = Field(default=20, gt=0, description="Longest time that a shard stays open.")
    shard_tokens: int = Field(default=16384, ge=1, description="Positions at which a shard is written at once.")
    max_spool_bytes: int = Field(
        default=MAX_SPOOL_BYTES, ge=1, description="Bytes of shards that may wait before the oldest is dropped."
    )
    max_queued_bytes: int = Field(default=512 << 20, ge=1, description="Bytes of batches that wait for the writer.")
    max_open_bytes: int = Field(default=2 << 30, ge=1, description="Bytes of hidden states of unfinished requests.")
