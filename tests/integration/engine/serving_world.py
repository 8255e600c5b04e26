"""A store that holds four drafts, one inference pod with this store, and what its tests ask of it."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from aurora_api.v1alpha1.draft import DraftSpec, Shape
from aurora_api.v1alpha1.serving import Device
from aurora_api.v1alpha1.target import DType, TargetSpec
from aurora_protocol.draft_records import Registration
from aurora_protocol.pod_settings import CaptureOptions, ServingSettings, StoreSettings
from aurora_runtime.pod_registry import PodRegistry
from aurora_store import ObjectStore
from tests.assets.model import ensure_model
from tests.assets.pod_processes import PodProcesses, initial_channel
from tests.assets.s3 import S3
from tests.assets.signing import KEYS, ROOT_OWNER
from tests.assets.trace_budget import TRACE_ALL
from tests.assets.trainer_output import publish_draft
from tests.integration.training.captured_traces import STEPS, conversation_number, frequent_tokens
from tests.integration.training.lineage import (
    DRAFT_VOCABULARY,
    lineage_of,
    target_ids,
    with_map,
    write_constant_draft,
    write_draft,
)

CHUNK_TOKENS = 24
"""Prefill chunk of the engine: most prompts of this module are longer, and are prefilled in chunks."""


@dataclass(frozen=True)
class Published:
    """A store with four drafts, of which version 0 is active."""

    registry: PodRegistry
    versions: dict[int, Registration]
    target: Path


@dataclass(frozen=True)
class World:
    pod: PodProcesses
    engine: subprocess.Popen[bytes]
    registry: PodRegistry
    versions: dict[int, Registration]
    target: Path

    def number(self, prompt: list[int]) -> int:
        return conversation_number(self.target, prompt, self.pod.traffic_key)


def pod_settings(s3: S3, target: Path, draft: DraftSpec, **capture: Any) -> ServingSettings:
    return ServingSettings(
        namespace="test",
        name="spec",
        target=TargetSpec(model=str(target), dtype=DType.FLOAT32),
        draft=draft,
        device=Device.CPU,
        capture=CaptureOptions(**{"shard_seconds": 2, "tokens_per_minute": TRACE_ALL} | capture),
        extra_args=["--chunked-prefill-size", str(CHUNK_TOKENS)],
        store=StoreSettings(
            owner=ROOT_OWNER.id, bucket="aurora-test", root="root", endpoint=s3.endpoint, region="us-east-1"
        ),
    )


def publish_drafts(store: S3, base: Path) -> Published:
    """Create the lineage and the drafts, whose folders lie below ``base``."""
    target = ensure_model()
    objects = ObjectStore(store.config())
    objects.ensure_bucket()
    registry = PodRegistry(objects, KEYS)
    first = frequent_tokens(target)
    drafts = {
        0: write_constant_draft(base / "constant", target, first),
        1: write_draft(base / "random", target, first, seed=7),
        2: write_constant_draft(base / "other-map", target, first, lowest=max(first) + 1),
        3: write_draft(base / "no-map", target, first, seed=8),
    }
    weights = drafts[3] / "model.safetensors"
    tensors = load_file(weights)
    save_file(with_map(tensors, target_ids(tensors).flip(0)), weights)
    registry.create_lineage(lineage_of(drafts[0], target))
    versions = {number: publish_draft(registry, folder, number) for number, folder in drafts.items()}
    registry.advance_channel(initial_channel())
    return Published(registry, versions, target)


@contextlib.contextmanager
def serving_world(store: S3, base: Path) -> Iterator[World]:
    """The pod, whose engine serves draft 0, with its agent."""
    published = publish_drafts(store, base)
    draft = DraftSpec(vocab_size=DRAFT_VOCABULARY, steps=STEPS, shape=Shape.FIXED)
    pod = PodProcesses(base / "pod", pod_settings(store, published.target, draft), store.environment())
    staged = pod.stage()
    assert staged.returncode == 0, staged.stderr.decode()
    with pod.engine() as engine, pod.agent():
        yield World(pod, engine, published.registry, published.versions, published.target)
