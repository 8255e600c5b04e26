"""The gate measures a published head with real SGLang: one that learned the traffic, and one of random weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from aurora_api.v1alpha1.draft import DraftSpec, PublishedHead
from aurora_api.v1alpha1.serving import Device
from aurora_api.v1alpha1.target import DType, TargetSpec
from aurora_api.v1alpha1.validation import ValidationSpec
from aurora_protocol.evidence_records import Arm, Evidence, VerdictKind
from aurora_protocol.pod_settings import MeasurementRounds, StoreSettings, ValidationSettings
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.training import lineage
from aurora_runtime.training.model import checkpoint
from aurora_store import ObjectStore
from tests.assets.model import ensure_model
from tests.assets.random_draft import write_random_draft
from tests.assets.s3 import S3, seaweedfs
from tests.assets.signing import KEYS, ROOT_OWNER, write_keys
from tests.assets.trained_draft import load_small_target, write_specialist
from tests.integration.engine.test_validation import Scene
from tests.integration.engine.validation_store import put_traces, recorded_traces
from tests.traffic.prompts import Domain
from tests.unit.training.heads import published

MEASURING_SECONDS = 1100
GATE = ValidationSpec(
    concurrencies=[1],
    max_new_tokens=32,
    timeout_seconds=MEASURING_SECONDS,
)
ROUNDS = MeasurementRounds(most=8, distinct=1)
pytestmark = pytest.mark.timeout(MEASURING_SECONDS + 300)


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with seaweedfs() as server:
        yield server


def publish(draft: Path, folder: Path) -> PublishedHead:
    """The draft in the folder ``draft``, as SpecForge publishes one."""
    target = load_small_target()
    return published.write(folder, published.specforge(*checkpoint.load(draft, target.embedding), target))


def measured(head: PublishedHead, s3: S3, folder: Path, name: str) -> Evidence:
    """The evidence about ``head`` as the first candidate of a new lineage, from the program of a validation Job."""
    model = ensure_model()
    config = s3.config(root=f"aurora/ns/{name}-1")
    objects = ObjectStore(config)
    objects.ensure_bucket()
    registry = PodRegistry(objects, KEYS)
    lineage.open_lineage(registry, load_small_target(), DraftSpec(initial=head), lineage.utc_now)
    put_traces(registry, recorded_traces(model, 2 * ROUNDS.fewest))
    write_keys(folder / "signing")
    settings = ValidationSettings(
        namespace="ns",
        name=name,
        target=TargetSpec(model=str(model), dtype=DType.FLOAT32),
        draft=DraftSpec(),
        validation=GATE,
        rounds=ROUNDS,
        device=Device.CPU,
        store=StoreSettings(
            owner=ROOT_OWNER.id, bucket=config.bucket, root=config.root, endpoint=s3.endpoint, region="us-east-1"
        ),
        candidate=lineage.HEAD_VERSION,
        active=0,
        attempt=1,
    )
    digests = registry.registration(0).digest, registry.registration(1).digest
    job = Scene(s3, registry, digests, settings, folder / "signing").run(settings)
    assert job.returncode == 0, job.stderr[-3000:]
    evidence = registry.evidence(lineage.HEAD_VERSION)
    assert evidence is not None
    assert (evidence.active_digest, evidence.candidate_digest) == digests
    print(f"{name}: {evidence.verdict.kind}: {evidence.verdict.reasons}; {evidence.acceptance_length}")
    return evidence


def test_a_head_that_learned_the_traffic_is_not_rejected(s3: S3, tmp_path: Path) -> None:
    learned = publish(write_specialist(ensure_model(), Domain.EXTRACTION, tmp_path), tmp_path / "head")
    evidence = measured(learned, s3, tmp_path, "learned")
    assert evidence.verdict.kind is not VerdictKind.REJECT
    assert evidence.acceptance_length[Arm.CANDIDATE] > evidence.acceptance_length[Arm.ACTIVE] + 0.3


def test_a_head_of_random_weights_does_not_pass(s3: S3, tmp_path: Path) -> None:
    random = publish(write_random_draft(tmp_path / "draft", ensure_model(), seed=3), tmp_path / "head")
    evidence = measured(random, s3, tmp_path, "random")
    assert evidence.verdict.kind is not VerdictKind.PASS
    assert evidence.acceptance_length[Arm.CANDIDATE] < 1.5
