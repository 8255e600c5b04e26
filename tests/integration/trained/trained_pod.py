"""An engine that serves a trained draft, and the comparison of its rounds with the pass that trains on them.

The draft is trained for a minute on JSON requests. Stock SGLang on the CPU engine serves it in float32. The pass that
trains on the captured rounds then unrolls them.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from aurora_api.v1alpha1.draft import DraftSpec
from aurora_api.v1alpha1.serving import Device
from aurora_api.v1alpha1.target import DType, TargetSpec
from aurora_api.v1alpha1.training import TrainingSpec
from aurora_protocol.draft_records import Channel, ChannelReason
from aurora_protocol.pod_settings import CaptureOptions, ServingSettings, StateType, StoreSettings
from aurora_runtime.packed_states import unpacked
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.traces import RequestTrace
from aurora_runtime.training import lineage
from aurora_runtime.training.candidates import Candidates
from aurora_runtime.training.data.examples import examples_of
from aurora_runtime.training.data.prefix_bank import PrefixBank
from aurora_runtime.training.evaluation import evaluate
from aurora_runtime.training.lineage import utc_now
from aurora_runtime.training.model import checkpoint
from aurora_runtime.training.model.draft import DraftModel
from aurora_runtime.training.model.vocabulary_map import VocabularyMap
from aurora_runtime.training.target.target_model import TargetModel
from aurora_store import ObjectStore
from tests.assets.model import ensure_model
from tests.assets.pod_processes import PodProcesses, http_body
from tests.assets.s3 import S3, seaweedfs
from tests.assets.signing import KEYS, ROOT_OWNER
from tests.assets.trace_budget import TRACE_ALL
from tests.assets.traces.recorded import json_traces
from tests.assets.trained_draft import load_small_target, train_draft
from tests.integration.trained.served_proposals import Comparison, collect, proposals

PROMPTS = 8
"""Prompts that the draft was not trained on."""


@dataclass(frozen=True)
class Served:
    """Traces of held-out prompts as the engine served them with a trained draft, and that draft as exported."""

    spec: DraftSpec
    traces: list[RequestTrace]
    draft: DraftModel
    vocabulary: VocabularyMap

    @property
    def acceptance_length(self) -> float:
        """Answer tokens of a round."""
        rounds = sum(t.root.shape[0] for t in self.traces)
        return sum(t.answer_tokens - 1 for t in self.traces) / rounds

    def simulated_acceptance_length(self) -> float:
        """The same of the chains that the draft would propose without an engine."""
        examples = [e for t in self.traces for e in examples_of(t, self.draft.config.vocab_size)]
        return evaluate(self.draft, examples, self.vocabulary, self.spec.steps).acceptance_length


def completed(bank: PrefixBank, trace: RequestTrace) -> RequestTrace:
    """``trace`` with the states that the prefix cache kept out of it."""
    states = bank.complete(trace)
    hidden = torch.cat([unpacked(block.states, block.scale) for block in states.blocks])
    return dataclasses.replace(trace, hidden_start=states.start, hidden=hidden)


def serve_trained_draft(spec: DraftSpec, base: Path) -> Served:
    """Train a draft, serve it as ``spec`` says, and collect the traces. Files go below ``base``."""
    target = load_small_target()
    with seaweedfs() as s3:
        registry = PodRegistry(ObjectStore(s3.config()), KEYS)
        registry.objects.ensure_bucket()
        lineage.open_lineage(registry, target, spec, utc_now)
        prompts = train(registry, target, spec, base / "candidate")
        with serving_engine(s3, spec, base / "pod") as pod:
            for prompt in prompts:
                body = {"input_ids": prompt, "sampling_params": {"temperature": 0, "max_new_tokens": 48}}
                http_body(f"{pod.engine_url}/generate", body)
            bank = PrefixBank(1 << 28, 256)  # the prefix cache has the chat template's start and the example
            traces = [completed(bank, t) for t in collect(pod.folder.spool, prompts)]
    assert all(t.hidden_start == 0 for t in traces)
    draft, ids = checkpoint.load(base / "candidate", target.embedding)
    return Served(spec, traces, draft, VocabularyMap.of(ids, target.identity.vocab_size))


def train(registry: PodRegistry, target: TargetModel, spec: DraftSpec, folder: Path) -> list[list[int]]:
    """Train on the recorded traces, and activate the result, also in ``folder``. Returns held-out prompts."""
    draft, vocabulary = lineage.fetch_draft(registry, 0, target)
    untrained = lineage.fetch_draft(registry, 0, target)
    traces = json_traces()
    result = train_draft(draft, vocabulary, traces)
    candidates = Candidates(registry, 1, TrainingSpec(), spec.steps, registry.registration(0), untrained)
    offered = candidates.offer(result.session, result.held_out, result.trained_tokens)
    assert offered.registration is not None, offered.message
    registry.fetch_checkpoint(offered.registration, folder)
    registry.advance_channel(
        Channel(
            owner=ROOT_OWNER, epoch=1, lineage=1, active=1, previous=0, reason=ChannelReason.PROMOTED, created=utc_now()
        )
    )
    return [t.tokens[: t.prompt_length].tolist() for t in traces if t.held_out][:PROMPTS]


@contextlib.contextmanager
def serving_engine(s3: S3, spec: DraftSpec, folder: Path) -> Iterator[PodProcesses]:
    """A pod with its engine, but without an agent, so that its traces stay in the spool."""
    settings = ServingSettings(
        namespace="test",
        name="served",
        target=TargetSpec(model=str(ensure_model()), dtype=DType.FLOAT32),
        draft=spec,
        device=Device.CPU,
        capture=CaptureOptions(tokens_per_minute=TRACE_ALL, shard_seconds=2, state_type=StateType.BFLOAT16),
        store=StoreSettings(
            owner=ROOT_OWNER.id, bucket="aurora-test", root="root", endpoint=s3.endpoint, region="us-east-1"
        ),
    )
    pod = PodProcesses(folder, settings, s3.environment())
    staged = pod.stage()
    assert staged.returncode == 0, staged.stderr.decode()
    with pod.engine():
        yield pod


def check_proposals(served: Served) -> None:
    """The pass makes the engine's proposals in new rounds, after accepted and after rejected nodes."""
    compared = Comparison()
    for trace in served.traces:
        compared.add(proposals(served.draft, served.vocabulary, served.spec, trace))
    nodes = sum(t.node_token.shape[0] - t.root.shape[0] for t in served.traces)
    print(f"proposals equal: {dict(compared.same)} of {dict(compared.total)}, {nodes} in all")
    assert compared.total["round"] > 50
    assert compared.total["rejected"] > 10
    assert compared.total.total() > 0.9 * nodes
    for place in compared.total:
        assert compared.share(place) > 0.97  # the others are near ties: captured states are rounded to 16 bits
