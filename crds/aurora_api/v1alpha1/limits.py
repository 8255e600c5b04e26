"""Limits of what clients may ask for, and of the memory that capture and training take. All are in bytes or counts."""

from __future__ import annotations

from typing import Final

from pydantic import Field

from aurora_api.base import MemorySize, Model

DEFAULT_MAX_ANSWERS: Final = 4096


class RequestLimits(Model):
    """Limits of one request. The engine refuses a request beyond them before SGLang handles the request."""

    body_size: MemorySize = Field(
        default="64Mi",
        description=(
            "Largest body of a request, such as 256Mi. A larger body is answered with status 413. A prompt of a"
            " million tokens has about 8 MB. Raise it where clients send long videos or many images. Pods restart one"
            " by one when it changes."
        ),
    )
    answers: int = Field(
        default=DEFAULT_MAX_ANSWERS,
        ge=1,
        le=65536,
        description=(
            "Most answers of a request with `n` above 1: its prompts times `n`. More are answered with status 400."
            " Raise it for batch work that samples many answers. Pods restart one by one when it changes."
        ),
    )


class CaptureLimits(Model):
    """Memory and disk that capture may take in an inference pod. Beyond a limit traces are dropped and counted.

    A change restarts the inference pods.
    """

    queue_size: MemorySize = Field(
        default="512Mi",
        description=(
            "Bytes of captured batches that wait for the writer, in the engine's memory. Raise it where"
            ' `aurora_agent_losses_total{reason="queue"}` grows while the disk is fast enough on average.'
        ),
    )
    open_size: MemorySize = Field(
        default="2Gi",
        description=(
            "Bytes of hidden states of requests that have not ended yet, in the engine's memory. Raise it for long"
            ' requests at high concurrency, where `aurora_agent_losses_total{reason="memory"}` grows.'
        ),
    )
    spool_size: MemorySize = Field(
        default="4Gi",
        description=(
            "Bytes of shards that wait for their upload, in the volume `state`. The oldest shard is dropped first."
            " Raise it to bridge longer outages of the store, within the volume's limit."
        ),
    )


class TrainerMemory(Model):
    """Host memory that the trainer may take for examples and shards, besides draft and target."""

    replay_size: MemorySize = Field(
        default="1Gi",
        description=(
            "Bytes of older examples that are trained again. At most half of `traceStorageLimit` is used, however"
            " large this is. Raise it to replay more of the past."
        ),
    )
    held_out_size: MemorySize = Field(
        default="2Gi",
        description=(
            "Bytes of the held-out requests on which drafts are compared. The newest are kept, 48 at most. Raise it"
            " where requests are so long that few of them fit."
        ),
    )
    prefix_bank_size: MemorySize = Field(
        default="256Mi",
        description="Bytes of hidden states that complete later traces with the same beginning. Raise it where many"
        " different long prompts are in use at a time.",
    )
    prefetch_size: MemorySize = Field(
        default="2Gi",
        description="Bytes of shards that are fetched before their turn, three shards at most. Lower it where the"
        " trainer's memory is short.",
    )
