"""Stock SGLang serves tiny targets of several families with initial drafts, and training sees what was served.

The targets are random, so they show that the parts fit and nothing about speed. The families are those that SGLang runs
on a CPU.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import torch

from aurora_api.v1alpha1.draft import DraftSpec, Shape
from aurora_api.v1alpha1.serving import Device
from aurora_api.v1alpha1.target import DType, TargetSpec
from aurora_protocol.draft_records import Channel, ChannelReason
from aurora_protocol.pod_settings import CaptureOptions, ServingSettings, StateType, StoreSettings
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.training import lineage
from aurora_runtime.training.lineage import utc_now
from aurora_runtime.training.target.target_model import load_target
from aurora_store import ObjectStore
from tests.assets.model import ensure_model
from tests.assets.pod_processes import PodProcesses, http_body
from tests.assets.s3 import S3, seaweedfs
from tests.assets.signing import KEYS, ROOT_OWNER
from tests.assets.tiny_targets import TINY_TARGETS, TinyTarget, write_tiny_target
from tests.assets.trace_budget import TRACE_ALL
from tests.integration.trained.served_proposals import Comparison, collect, proposals

pytestmark = pytest.mark.timeout(600)
SPEC: Final = DraftSpec(steps=3, shape=Shape.FIXED, vocab_size=4096)
VOCABULARY: Final = 49_152
"""The tokenizer is that of SmolLM2."""
PROMPTS: Final = [
    torch.randint(300, 4000, (20,), generator=torch.Generator().manual_seed(n)).tolist() for n in range(6)
]


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with seaweedfs() as server:
        yield server


SERVED: Final = [
    tiny for tiny in TINY_TARGETS if tiny.name in ("Llama 3", "Qwen2.5", "Qwen3", "Qwen3-MoE", "MiniMax-M2", "GLM-4.5")
]


@pytest.mark.parametrize("tiny", SERVED, ids=lambda tiny: tiny.name)
def test_the_training_pass_proposes_the_same_tokens_as_the_engine(tiny: TinyTarget, s3: S3, tmp_path: Path) -> None:
    target_spec = TargetSpec(model=str(tmp_path / "target"), dtype=DType.FLOAT32)
    write_tiny_target(tiny, tmp_path / "target", vocab_size=VOCABULARY, eos_token_id=2, bos_token_id=1)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(ensure_model() / name, tmp_path / "target" / name)
    root = tiny.name.lower().replace(" ", "-")
    registry = PodRegistry(ObjectStore(s3.config(root=root)), KEYS)
    registry.objects.ensure_bucket()
    target = load_target(target_spec)
    lineage.open_lineage(registry, target, SPEC, utc_now)
    registry.advance_channel(
        Channel(owner=ROOT_OWNER, epoch=1, lineage=1, active=0, reason=ChannelReason.INITIAL, created=utc_now())
    )
    settings = ServingSettings(
        namespace="test",
        name="targets",
        target=target_spec,
        draft=SPEC,
        device=Device.CPU,
        capture=CaptureOptions(tokens_per_minute=TRACE_ALL, shard_seconds=2, state_type=StateType.BFLOAT16),
        store=StoreSettings(
            owner=ROOT_OWNER.id, bucket="aurora-test", root=root, endpoint=s3.endpoint, region="us-east-1"
        ),
    )
    pod = PodProcesses(tmp_path / "pod", settings, s3.environment())
    staged = pod.stage()
    assert staged.returncode == 0, staged.stderr.decode()
    with pod.engine():
        for prompt in PROMPTS:
            body = {
                "input_ids": prompt,
                "sampling_params": {"temperature": 0, "max_new_tokens": 24, "ignore_eos": True},
            }
            http_body(f"{pod.engine_url}/generate", body)
        traces = collect(pod.folder.spool, PROMPTS)
    draft, vocabulary = lineage.fetch_draft(registry, 0, target)
    compared = Comparison()
    for trace in traces:
        compared.add(proposals(draft, vocabulary, SPEC, trace))
    print(f"{tiny.name}: proposals equal: {dict(compared.same)} of {dict(compared.total)}")
    assert compared.total["round"] > 50
    for place in compared.total:
        assert compared.share(place) > 0.95  # the others are near ties: captured states are rounded to 16 bits
