"""``spec.training``: the trainer."""

from __future__ import annotations

from typing import Final

from pydantic import Field

from aurora_api.base import Model, Ratio
from aurora_api.v1alpha1.template import PodTemplate

MAX_UNROLL_STEPS: Final = 8


class TrainingSpec(Model):
    """The trainer."""

    suspended: bool = Field(default=False, description="Stop training; serving goes on with the active draft.")
    learning_rate: Ratio = Field(default="0.001")
    replay: int = Field(
        default=3,
        ge=0,
        le=8,
        description="Replayed batches per fresh batch. More of them need less traffic for the same draft, and as many"
        " times the computation: lower it for a trainer that falls behind. 0 trains every position once.",
    )
    passes: int = Field(
        default=16,
        ge=1,
        le=64,
        description="A position is trained at most this often on average, replays included: beyond 1 + replay a trainer"
        " replays while it would wait for traces, and then rests. Without replay it counts for nothing.",
    )
    unroll_steps: int | None = Field(
        default=None,
        ge=1,
        le=MAX_UNROLL_STEPS,
        description="Draft steps that training unrolls (EAGLE-3's training-time test); as many as draft.steps, at most"
        f" {MAX_UNROLL_STEPS}, if unset. Deeper than it was trained a draft guesses worse.",
    )
    publish_tokens: int = Field(
        default=20000, ge=256, description="Offer a candidate after this many new traced positions, when it improved."
    )
    publish_seconds: int = Field(default=900, ge=10, description="…or after this time.")
    min_gain: Ratio = Field(
        default="0.02", description="Held-out acceptance length a candidate must gain to be offered."
    )
    keep_gibibytes: int = Field(
        default=64,
        ge=2,
        le=1048576,
        description="Traces kept in the store, and their number: one shard per MiB, at least 4096. Beyond either the"
        " oldest are deleted, learnt from or not. Replay and held-out prompts come from what is kept.",
    )
    template: PodTemplate = Field(default_factory=PodTemplate)
