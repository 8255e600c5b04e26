"""A replica measured with the real parts: a pod on the CPU engine, its agent and the validation Job's program.

The test plays the operator's part: it chooses the pod.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import pytest

from aurora_api.v1alpha1.draft import DraftSpec
from aurora_api.v1alpha1.serving import Device
from aurora_api.v1alpha1.target import DType, TargetSpec
from aurora_api.v1alpha1.validation import ValidationSpec
from aurora_protocol.agent_api import MEASUREMENT_HEADER, PASS_HEADER, AgentState, measurement_pass
from aurora_protocol.draft_records import Registration
from aurora_protocol.evidence_records import Arm
from aurora_protocol.gate import judge
from aurora_protocol.pod_settings import (
    SETTINGS_VARIABLE,
    CaptureOptions,
    MeasurementRounds,
    Replica,
    ServingSettings,
    StoreSettings,
    ValidationSettings,
)
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.traces import decode
from aurora_runtime.validation.rounds import MeasurementPlan
from aurora_store import ObjectStore
from tests.assets.model import ensure_model
from tests.assets.pod_processes import AGENT_TOKEN, PodProcesses, http_body, http_status, initial_channel
from tests.assets.s3 import S3, seaweedfs
from tests.assets.signing import KEYS, ROOT_OWNER
from tests.assets.trace_budget import TRACE_ALL
from tests.assets.trainer_output import publish_draft
from tests.integration.engine.validation_store import put_traces, recorded_traces
from tests.integration.training.lineage import (
    DRAFT_VOCABULARY,
    lineage_of,
    write_constant_draft,
    write_draft,
)

pytestmark = pytest.mark.timeout(1800)  # engine starts: half a minute each when quiet, minutes when busy

TOKENS, ROUNDS = 16, 3
DRAFT = DraftSpec(vocab_size=DRAFT_VOCABULARY)
PROMPT = [1, 2, 3, 4, 5]
FIRST_CANDIDATE, SECOND_CANDIDATE = 1, 2


@dataclass(frozen=True)
class World:
    """A pod, its store, and the settings of the validation Job."""

    pod: PodProcesses
    s3: S3
    registry: PodRegistry
    versions: dict[int, Registration]
    settings: ValidationSettings
    before: AgentState
    answer: list[int]

    def validator(self, candidate: int, attempt: int, log: Path) -> subprocess.Popen[bytes]:
        """Start the Job's program for an attempt to measure ``candidate``."""
        replica = Replica(
            pod="pod-0",
            ip="127.0.0.1",
            measurement=f"job-{attempt}",
            epoch=2,
            agent_port=self.pod.agent_port,
            engine_port=self.pod.engine_port,
        )
        update: dict[str, Any] = {"candidate": candidate, "attempt": attempt, "replica": replica}
        settings = self.settings.model_copy(update=update)
        environment = {**os.environ, **self.s3.environment(), SETTINGS_VARIABLE: settings.to_json().decode()}
        command = [sys.executable, "-m", "aurora_runtime.validation", "--keys", str(self.pod.keys)]
        command += ["--signing", str(self.pod.signing)]
        with log.open("wb") as sink:
            return subprocess.Popen(command, env=environment, stdout=sink, stderr=subprocess.STDOUT)

    def wait_until(self, event: str, happened: Callable[[], bool], timeout_seconds: float = 900) -> None:
        deadline = time.monotonic() + timeout_seconds
        while not happened():
            if time.monotonic() > deadline:
                agent = (self.pod.path / "agent.log").read_text()[-2000:]
                engine = self.pod.log.read_text()[-2000:]
                raise TimeoutError(f"{event}: not within {timeout_seconds} s\n{agent}\n{engine}")
            time.sleep(0.3)

    def wait_until_second_candidate_is_loaded(self, validator: subprocess.Popen[bytes]) -> None:
        """Wait until the engine holds the second candidate, or the validator has ended."""
        version = str(SECOND_CANDIDATE)
        self.wait_until(
            "the candidate is loaded", lambda: self.engine_version() == version or validator.poll() is not None
        )

    def engine_version(self) -> str:
        """The version that the engine reports, a trial draft included. Empty while the engine is down."""
        with contextlib.suppress(OSError):
            return str(json.loads(http_body(f"{self.pod.engine_url}/model_info"))["weight_version"])
        return ""

    def assert_returned(self) -> None:
        """The pod serves the same draft as before, bit for bit, and would start with that draft."""
        self.wait_until("the pod is back in the Service", lambda: self.pod.probe() == 200)
        state = self.pod.state()
        assert (state.version, state.checksum, state.measurement) == (0, self.before.checksum, None)
        assert self.engine_version() == "0"
        assert self.pod.folder.current.resolve().name.startswith("00000000-")
        assert generate(self.pod.engine_url)["output_ids"] == self.answer


def generate(url: str) -> dict[str, Any]:
    body = {"input_ids": PROMPT, "sampling_params": {"temperature": 0, "max_new_tokens": TOKENS, "ignore_eos": True}}
    answer: dict[str, Any] = json.loads(http_body(f"{url}/generate", body))
    return answer


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    model, base = ensure_model(), tmp_path_factory.mktemp("replica")
    with seaweedfs() as s3:
        config = s3.config()
        objects = ObjectStore(config)
        objects.ensure_bucket()
        registry = PodRegistry(objects, KEYS)
        first = list(range(100, 108))
        drafts = [
            write_constant_draft(base / "constant", model, first),
            write_draft(base / "random", model, first, seed=7),
            write_draft(base / "other-random", model, first, seed=11),
        ]
        registry.create_lineage(lineage_of(drafts[0], model))
        versions = {number: publish_draft(registry, folder, number) for number, folder in enumerate(drafts)}
        registry.advance_channel(initial_channel())
        put_traces(registry, recorded_traces(model, 6))
        store = StoreSettings(
            owner=ROOT_OWNER.id, bucket=config.bucket, root=config.root, endpoint=s3.endpoint, region="us-east-1"
        )
        target = TargetSpec(model=str(model), dtype=DType.FLOAT32)
        serving = ServingSettings(
            namespace="test",
            name="spec",
            target=target,
            draft=DRAFT,
            device=Device.CPU,
            capture=CaptureOptions(tokens_per_minute=TRACE_ALL, shard_seconds=2),
            store=store,
        )
        validation = ValidationSettings(
            namespace="test",
            name="spec",
            target=target,
            draft=DRAFT,
            validation=ValidationSpec(
                concurrencies=[1, 2],
                max_new_tokens=TOKENS,
                timeout_seconds=1500,
            ),
            rounds=MeasurementRounds(fewest=ROUNDS, most=ROUNDS, distinct=1),
            device=Device.CPU,
            store=store,
            candidate=FIRST_CANDIDATE,
            active=0,
            attempt=1,
        )
        pod = PodProcesses(base / "pod", serving, s3.environment())
        staged = pod.stage()
        assert staged.returncode == 0, staged.stderr.decode()
        with pod.restarting_engine():
            answer = generate(pod.engine_url)["output_ids"]
            with pod.agent():
                before = pod.state()
            yield World(pod, s3, registry, versions, validation, before, answer)


def test_a_replica_is_withdrawn_measured_and_returned(world: World, tmp_path: Path) -> None:
    with world.pod.agent():
        with world.validator(FIRST_CANDIDATE, 1, tmp_path / "validator.log") as validator:
            ended = validator.poll
            world.wait_until("the pod leaves", lambda: world.pod.probe() == 503 or ended() is not None)
            assert validator.wait(1500) == 0, (tmp_path / "validator.log").read_text()[-3000:]
        world.assert_returned()
        time.sleep(3)  # longer than a shard stays open
    evidence = world.registry.evidence(FIRST_CANDIDATE)
    assert evidence is not None
    arms = (Arm.ACTIVE, Arm.CANDIDATE, Arm.OFF)
    assert {(s.arm, s.round) for s in evidence.samples} == {(arm, number) for arm in arms for number in range(ROUNDS)}
    assert Arm.OFF not in evidence.acceptance_length, "off is answered without speculation by the pod's own engine"
    for equality in evidence.equality:
        assert equality.prompts == equality.identical > 0, f"{equality.arm}: fp32 answers differ from no speculation"
    assert evidence.environment.device == "cpu"
    assert evidence.environment.engine == installed_version("sglang")
    policy = MeasurementPlan.of(world.settings).policy
    assert judge(evidence.samples, evidence.equality, policy) == evidence.verdict
    captured = [world.registry.shard(key)[1] for key in world.registry.list_shards(1).data_bytes]
    lengths = [trace.prompt_length for data in captured for trace in decode(data) if trace.root.shape[0]]
    assert set(lengths) <= {len(PROMPT)}, "requests of a measurement were traced as traffic"


def test_a_replica_returns_to_its_own_draft_when_the_validator_dies(world: World, tmp_path: Path) -> None:
    """The validator is killed while the candidate is loaded. The pod refuses clients until the lease ends."""
    with world.pod.agent():
        with world.validator(SECOND_CANDIDATE, 2, tmp_path / "validator.log") as validator:
            world.wait_until_second_candidate_is_loaded(validator)
            validator.kill()
        assert world.engine_version() == str(SECOND_CANDIDATE), (tmp_path / "validator.log").read_text()[-3000:]
        assert world.pod.probe() == 503
        body = {"input_ids": PROMPT, "sampling_params": {"temperature": 0, "max_new_tokens": 4}}
        assert http_status(f"{world.pod.engine_url}/generate", body) == 503
        guessed_pass = {PASS_HEADER: "job-2", MEASUREMENT_HEADER: "job-2"}
        assert http_status(f"{world.pod.engine_url}/generate", body, headers=guessed_pass) == 503, (
            "the name of the measurement alone gives no access"
        )
        valid_pass = {PASS_HEADER: measurement_pass(AGENT_TOKEN, "job-2")}
        assert http_status(f"{world.pod.engine_url}/generate", body, headers=valid_pass) == 200
        chat = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
        assert http_status(f"{world.pod.engine_url}/v1/chat/completions", chat) == 503
        world.assert_returned()


def test_a_replica_returns_when_its_agent_restarts_during_a_measurement(world: World, tmp_path: Path) -> None:
    with contextlib.ExitStack() as validators:
        with world.pod.agent() as agent:
            validator = validators.enter_context(world.validator(SECOND_CANDIDATE, 3, tmp_path / "validator.log"))
            world.wait_until_second_candidate_is_loaded(validator)
            agent.kill()
        with world.pod.agent():
            world.assert_returned()
            assert validator.wait(300) == 1, "the Job could not measure, so there is no verdict"
            world.assert_returned()
    assert [key for key in world.registry.objects.list("evidence/") if key.endswith("00000003.json")] == []
