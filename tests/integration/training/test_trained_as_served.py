"""Trained as served: on an engine's traces, the training pass makes the same proposals as the engine.

The draft is trained for a minute on JSON requests. Stock SGLang on the CPU engine serves it in float32, with chains
and then with trees. The pass that trains on the captured rounds then unrolls them. Proposals after accepted and after
rejected tokens must agree, and so must the acceptance length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from aurora_api.v1alpha1.capture import CaptureSpec, StateType
from aurora_api.v1alpha1.draft import DraftSpec, Shape
from aurora_api.v1alpha1.target import DType, TargetSpec
from aurora_api.v1alpha1.training import TrainingSpec
from aurora_protocol.draft_records import Channel, ChannelReason
from aurora_protocol.pod_settings import ServingSettings, StoreSettings
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
from aurora_runtime.training.target.target_model import load_target
from aurora_store import ObjectStore, Registry
from tests.assets.model import ensure_model
from tests.assets.pod_processes import PodProcesses, http_body
from tests.assets.s3 import S3, seaweedfs
from tests.assets.signing import KEYS
from tests.assets.traces.recorded import json_traces
from tests.assets.trained_draft import train_draft
from tests.integration.training.served_proposals import Comparison, collect, proposals

pytestmark = pytest.mark.timeout(1800)
STEPS = 3
CHAIN = DraftSpec(steps=STEPS, shape=Shape.FIXED)
TREE = DraftSpec(steps=STEPS, branching=3, draft_tokens=8)


@dataclass(frozen=True)
class Served:
    """Traces of held-out prompts as the engine served them with a trained draft, and that draft as exported."""

    spec: DraftSpec
    traces: list[RequestTrace]
    draft: DraftModel
    vocabulary: VocabularyMap


@dataclass(frozen=True)
class Trained:
    """A store whose active draft was trained, and prompts that the draft was not trained on."""

    s3: S3
    candidate: Path
    prompts: list[list[int]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    base = tmp_path_factory.mktemp("trained")
    with seaweedfs() as s3:
        registry = Registry(ObjectStore(s3.config()), KEYS)
        registry.objects.ensure_bucket()
        target = load_target(TargetSpec(model=str(ensure_model())))
        lineage.open_lineage(registry, target, CHAIN, utc_now)
        yield Trained(s3, base / "candidate", train(registry, base))


@pytest.fixture(scope="module", params=[CHAIN, TREE], ids=["chain", "tree"])
def served(request: pytest.FixtureRequest, trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Served:
    spec: DraftSpec = request.param
    settings = ServingSettings(
        namespace="test",
        name="served",
        target=TargetSpec(model=str(ensure_model()), dtype=DType.FLOAT32),
        draft=spec,
        capture=CaptureSpec(shard_seconds=2, state_type=StateType.BFLOAT16),
        store=StoreSettings(bucket="aurora-test", root="root", endpoint=trained.s3.endpoint, region="us-east-1"),
    )
    pod = PodProcesses(tmp_path_factory.mktemp("pod") / "pod", settings, trained.s3.environment())
    staged = pod.stage()
    assert staged.returncode == 0, staged.stderr.decode()
    with pod.engine():
        for prompt in trained.prompts:
            body = {"input_ids": prompt, "sampling_params": {"temperature": 0, "max_new_tokens": 48}}
            http_body(f"{pod.engine_url}/generate", body)
        bank = PrefixBank(1 << 28, 256)  # the chat template's start and the example come from the engine's prefix cache
        traces = [bank.complete(t) for t in collect(pod.folder.spool, trained.prompts)]
    assert all(t.hidden_start == 0 for t in traces)
    target = load_target(TargetSpec(model=str(ensure_model())))
    draft, ids = checkpoint.load(trained.candidate, target.embedding)
    return Served(spec, traces, draft, VocabularyMap.of(ids, target.identity.vocab_size))


def train(registry: Registry, base: Path) -> list[list[int]]:
    """Train on the recorded traces, register and activate the result; returns held-out prompts."""
    target = load_target(TargetSpec(model=str(ensure_model())))
    draft, vocabulary = lineage.fetch_draft(registry, 0, target)
    untrained = lineage.fetch_draft(registry, 0, target)
    traces = json_traces()
    result = train_draft(draft, vocabulary, traces)
    candidates = Candidates(registry, 1, TrainingSpec(), STEPS, registry.registration(0), untrained)
    offered = candidates.offer(result.session, result.held_out, result.trained_tokens)
    assert offered.registration is not None, offered.message
    registry.fetch_checkpoint(offered.registration, base / "candidate")
    registry.advance_channel(
        Channel(epoch=1, lineage=1, active=1, previous=0, reason=ChannelReason.PROMOTED, created=utc_now())
    )
    return [t.tokens[: t.prompt_length].tolist() for t in traces if t.held_out][:12]


def test_the_training_pass_proposes_the_same_tokens_as_the_engine(served: Served) -> None:
    """After accepted and after rejected nodes."""
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


def test_the_simulated_acceptance_length_is_the_served_one(served: Served) -> None:
    rounds = sum(t.root.shape[0] for t in served.traces)
    length = sum(t.answer_tokens - 1 for t in served.traces) / rounds
    examples = [e for t in served.traces for e in examples_of(t, served.draft.config.vocab_size)]
    simulated = evaluate(served.draft, examples, served.vocabulary, STEPS).acceptance_length
    print(f"acceptance length served {length:.3f}, simulated {simulated:.3f}")
    assert length > 1.5
    if served.spec.branching == 1:
        assert simulated == pytest.approx(length, rel=0.1)
    else:
        assert length > 0.9 * simulated  # the simulation proposes a chain, and a tree mostly contains the chain
