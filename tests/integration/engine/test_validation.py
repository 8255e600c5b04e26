"""The validation Job's program with real SGLang on the CPU, a real S3 store and real prompts."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from aurora_api.v1alpha1.draft import DraftSpec, LookupScope
from aurora_api.v1alpha1.serving import Device
from aurora_api.v1alpha1.target import DType, TargetSpec
from aurora_api.v1alpha1.validation import Baseline, ValidationSpec
from aurora_protocol.evidence_records import Arm, Evidence, VerdictKind
from aurora_protocol.gate import judge
from aurora_protocol.pod_settings import SETTINGS_VARIABLE, MeasurementRounds, StoreSettings, ValidationSettings
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.validation.rounds import MeasurementPlan
from aurora_store import ObjectStore
from tests.assets.model import ensure_model
from tests.assets.random_draft import write_random_draft
from tests.assets.s3 import S3, seaweedfs
from tests.assets.signing import KEYS, ROOT_OWNER, write_keys
from tests.integration.engine.validation_store import put_lineage, put_traces, put_version, recorded_traces

ROUNDS = 3
PROMPTS = 6
"""Answered in a circle by the rounds, and by each draft before the first round."""
CONVERSATIONS = 5
"""Recorded conversations that are not held out."""
ANSWER_TOKENS = 12
ARMS = (Arm.OFF, Arm.ACTIVE, Arm.CANDIDATE, Arm.NGRAM)
TIMEOUT_SECONDS = 1100
MARK = f"aurora-test-{secrets.token_hex(8)}"
"""Value of an environment variable by which this test finds the processes of its Jobs."""


@dataclass(frozen=True)
class Scene:
    """A store with prompts and the untrained versions 0 and 1, and the settings of a validation Job."""

    s3: S3
    registry: PodRegistry
    digests: tuple[str, str]
    settings: ValidationSettings
    signing: Path
    """Folder with the key that signs evidence."""

    def run(self, settings: ValidationSettings) -> subprocess.CompletedProcess[str]:
        """Run the Job's command in a separate process."""
        environment = {
            **os.environ,
            **self.s3.environment(),
            SETTINGS_VARIABLE: settings.to_json().decode(),
            "MARK": MARK,
        }
        command = [sys.executable, "-m", "aurora_runtime.validation", "--signing", str(self.signing)]
        return subprocess.run(
            command, env=environment, text=True, capture_output=True, timeout=TIMEOUT_SECONDS, check=False
        )


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    model, folder = ensure_model(), tmp_path_factory.mktemp("validation")
    with seaweedfs() as s3:
        config = s3.config(root="aurora/ns/chat-1")
        objects = ObjectStore(config)
        objects.ensure_bucket()
        registry = PodRegistry(objects, KEYS)
        drafts = [write_random_draft(folder / str(seed), model, seed=seed) for seed in (0, 1)]
        put_lineage(registry, drafts[0])
        training = recorded_traces(model, CONVERSATIONS, held_out=False)
        put_traces(registry, [*recorded_traces(model, PROMPTS), *training])
        digests = [put_version(registry, version, draft) for version, draft in enumerate(drafts)]
        settings = ValidationSettings(
            namespace="ns",
            name="chat",
            target=TargetSpec(model=str(model), dtype=DType.FLOAT32),
            draft=DraftSpec(),
            validation=ValidationSpec(
                concurrencies=[1, 2],
                max_new_tokens=ANSWER_TOKENS,
                baselines=[Baseline.NGRAM],
                timeout_seconds=TIMEOUT_SECONDS,
            ),
            rounds=MeasurementRounds(fewest=ROUNDS, most=ROUNDS, distinct=1),
            device=Device.CPU,
            store=StoreSettings(
                owner=ROOT_OWNER.id, bucket=config.bucket, root=config.root, endpoint=s3.endpoint, region="us-east-1"
            ),
            candidate=1,
            active=0,
            attempt=1,
        )
        write_keys(folder / "signing")
        yield Scene(s3, registry, (digests[0], digests[1]), settings, folder / "signing")


@pytest.mark.timeout(TIMEOUT_SECONDS + 60)
def test_an_untrained_candidate_does_not_pass_and_changes_no_answer(scene: Scene) -> None:
    job = scene.run(scene.settings)
    assert job.returncode == 0, job.stderr[-3000:]

    evidence = scene.registry.evidence(1)
    assert evidence is not None
    assert evidence.verdict.kind is not VerdictKind.PASS
    assert (evidence.active_digest, evidence.candidate_digest) == scene.digests
    _samples_are_whole(evidence)
    recomputed = judge(evidence.samples, evidence.equality, MeasurementPlan.of(scene.settings).policy)
    assert recomputed == evidence.verdict, "an auditor computes another verdict from the same evidence"

    for equality in evidence.equality:
        assert equality.prompts == equality.identical > 0, f"{equality.arm}: fp32 answers differ from no speculation"
    assert evidence.environment.device == "cpu"
    assert evidence.environment.dtype == "float32"
    for arm in (Arm.ACTIVE, Arm.CANDIDATE):
        assert 1.0 <= evidence.acceptance_length[arm] < 1.5
    ngram_ratios = [r for r in evidence.verdict.ratios if r.denominator is Arm.NGRAM]
    assert {r.concurrency for r in ngram_ratios} == {1, 2}, "NGRAM is reported beside the arms that decide"

    assert evidence.environment.lookup is LookupScope.SPECULATOR
    assert f"lookup begins with {CONVERSATIONS} of {CONVERSATIONS} recorded conversations" in job.stderr
    assert scene.s3.secret_key not in job.stderr
    assert _marked_processes() == [], "engines outlive their validation"


def _marked_processes() -> list[int]:
    """Processes started by a Job of this test, found by the mark in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"MARK={MARK}".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return found


def _samples_are_whole(evidence: Evidence) -> None:
    keys = [(s.round, s.concurrency, s.arm) for s in evidence.samples]
    assert len(set(keys)) == len(keys)
    assert {(r, c, a) for r in range(ROUNDS) for c in (1, 2) for a in ARMS} == set(keys)
    for sample in evidence.samples:
        assert sample.requests == sample.concurrency
        assert sample.failures == 0
        assert 0 < sample.tokens <= ANSWER_TOKENS * sample.requests
        assert (sample.verify_rounds is None) == (sample.arm is Arm.OFF)
    for number in range(ROUNDS):
        for concurrency in (1, 2):
            tokens = {s.tokens for s in evidence.samples if (s.round, s.concurrency) == (number, concurrency)}
            assert len(tokens) == 1, "arms answered the same prompts with other lengths"


@pytest.mark.parametrize(
    ("version", "damage", "words"),
    [
        (2, "values", "not finite"),
        (3, "map", "d2t does not name"),
        (4, "bytes", "not what its manifest says"),
    ],
)
def test_a_candidate_that_no_pod_would_load_is_rejected_unmeasured(
    scene: Scene, tmp_path: Path, version: int, damage: str, words: str
) -> None:
    draft = write_random_draft(tmp_path / "draft", ensure_model(), seed=version)
    file = draft / "model.safetensors"
    tensors = load_file(file)
    if damage == "values":
        tensors["fc.weight"][0, 0] = torch.nan
    if damage == "map":
        tensors["d2t"][-1] = 1 << 40
    save_file(tensors, file)
    put_version(scene.registry, version, draft)
    if damage == "bytes":
        key = scene.registry.registration(version).checkpoint + file.name
        scene.registry.objects.put(key, file.read_bytes()[:-1])
    job = scene.run(scene.settings.model_copy(update={"candidate": version}))
    assert job.returncode == 0, job.stderr[-3000:]
    evidence = scene.registry.evidence(version)
    assert evidence is not None
    assert (evidence.verdict.kind, evidence.samples) == (VerdictKind.REJECT, ())
    assert words in evidence.verdict.reasons[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"candidate": 7}, "no such object"),
        ({"rounds": MeasurementRounds(distinct=100)}, "wait for traffic"),
    ],
)
def test_a_measurement_that_is_impossible_fails_the_job_and_leaves_no_evidence(
    scene: Scene, change: dict[str, object], words: str
) -> None:
    job = scene.run(scene.settings.model_copy(update={"attempt": 9, **change}))
    assert job.returncode == 1
    assert words in job.stderr
    assert "Traceback" not in job.stderr
    assert not [key for key in scene.registry.objects.list("evidence/") if key.endswith("00000009.json")]
