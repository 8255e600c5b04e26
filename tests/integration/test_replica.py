"""A replica measured on the real parts: stock SGLang on the CPU engine leaves its Service, is measured, and returns.

The operator's part, choosing the pod and asking for it, is played by the test; the driver is the Job's own program.
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
from pathlib import Path
from typing import Any

import pytest

from aurora_api.v1alpha1.capture import CaptureSpec
from aurora_api.v1alpha1.draft import DraftSpec
from aurora_api.v1alpha1.serving import Device
from aurora_api.v1alpha1.target import DType, TargetSpec
from aurora_api.v1alpha1.validation import Baseline, ValidationSpec
from aurora_protocol.agent_api import MEASUREMENT_HEADER, PASS_HEADER, AgentState, MeasurementPhase, measurement_pass
from aurora_protocol.draft_records import Registration
from aurora_protocol.evidence_records import Arm
from aurora_protocol.gate import judge
from aurora_protocol.pod_settings import SETTINGS_VARIABLE, Replica, ServingSettings, StoreSettings, ValidationSettings
from aurora_runtime.traces import decode
from aurora_runtime.validation.measurement_plan import measurement_plan
from aurora_store import ObjectStore, Registry
from tests.assets.model import ensure_model
from tests.assets.pod_processes import AGENT_TOKEN, PodProcesses, http_body, http_status, initial_channel
from tests.assets.s3 import S3, seaweedfs
from tests.assets.trainer_output import publish_draft
from tests.integration.lineage import (
    DRAFT_VOCABULARY,
    lineage_of,
    write_constant_draft,
    write_draft,
)
from tests.integration.validation_store import held_out_traces, put_traces

pytestmark = pytest.mark.timeout(1800)  # four starts of an engine, each half a minute alone and minutes in a crowd

TOKENS, ROUNDS = 16, 3
DRAFT = DraftSpec(vocab_size=DRAFT_VOCABULARY)
PROMPT = [1, 2, 3, 4, 5]


@dataclass(frozen=True)
class World:
    pod: PodProcesses
    s3: S3
    registry: Registry
    versions: dict[int, Registration]
    settings: ValidationSettings
    before: AgentState
    answer: list[int]

    def driver(self, attempt: int, log: Path) -> subprocess.Popen[bytes]:
        """The Job of an attempt."""
        place = Replica(
            pod="pod-0",
            ip="127.0.0.1",
            measurement=f"job-{attempt}",
            epoch=2,
            agent_port=self.pod.agent_port,
            engine_port=self.pod.engine_port,
        )
        settings = self.settings.model_copy(update={"attempt": attempt, "replica": place})
        environment = {**os.environ, **self.s3.environment(), SETTINGS_VARIABLE: settings.to_json().decode()}
        command = [sys.executable, "-m", "aurora_runtime.validation", "--keys", str(self.pod.keys)]
        with log.open("wb") as sink:
            return subprocess.Popen(command, env=environment, stdout=sink, stderr=subprocess.STDOUT)

    def wait(self, what: str, true: Callable[[], bool], timeout: float = 600) -> None:
        deadline = time.monotonic() + timeout
        while not true():
            if time.monotonic() > deadline:
                agent = (self.pod.path / "agent.log").read_text()[-2000:]
                raise TimeoutError(f"{what}: not within {timeout} s\n{agent}\n{self.pod.log.read_text()[-2000:]}")
            time.sleep(0.3)

    def phase(self) -> MeasurementPhase | None:
        measurement = self.pod.state().measurement
        return measurement.phase if measurement else None

    def held(self) -> str:
        """The version that the engine says it holds, whatever the pod serves; empty while it is away."""
        with contextlib.suppress(OSError):
            return str(json.loads(http_body(f"{self.pod.engine_url}/model_info"))["weight_version"])
        return ""

    def is_back(self) -> None:
        """Serves what it served before, to the bit, and would start with it."""
        self.wait("back in the Service", lambda: http_status(f"{self.pod.agent_url}/readyz") == 200)
        state = self.pod.state()
        assert (state.version, state.checksum, state.measurement) == (0, self.before.checksum, None)
        assert self.held() == "0"
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
        registry = Registry(objects)
        first = list(range(100, 108))
        drafts = [
            write_constant_draft(base / "constant", model, first),
            write_draft(base / "random", model, first, seed=7),
        ]
        registry.create_lineage(lineage_of(drafts[0], model))
        versions = {number: publish_draft(registry, folder, number) for number, folder in enumerate(drafts)}
        registry.advance_channel(initial_channel())
        put_traces(registry, held_out_traces(model, 6))
        store = StoreSettings(bucket=config.bucket, root=config.root, endpoint=s3.endpoint, region="us-east-1")
        target = TargetSpec(model=str(model), dtype=DType.FLOAT32)
        serving = ServingSettings(
            namespace="test", name="spec", target=target, draft=DRAFT, capture=CaptureSpec(shard_seconds=2), store=store
        )
        measured = ValidationSettings(
            namespace="test",
            name="spec",
            target=target,
            draft=DRAFT,
            validation=ValidationSpec(
                concurrencies=[1, 2],
                min_rounds=ROUNDS,
                max_rounds=ROUNDS,
                prompts_per_round=1,
                max_new_tokens=TOKENS,
                baselines=[Baseline.NGRAM],
                timeout_seconds=1500,
            ),
            device=Device.AUTO,
            store=store,
            candidate=1,
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
            yield World(pod, s3, registry, versions, measured, before, answer)


def test_a_replica_leaves_is_measured_in_every_mode_and_returns(world: World, tmp_path: Path) -> None:
    with world.pod.agent():
        assert world.pod.request_measurement("job-1", 120, begin=True) == 202
        assert http_status(f"{world.pod.agent_url}/readyz") == 503
        with world.driver(1, tmp_path / "driver.log") as driver:
            assert driver.wait(1500) == 0, (tmp_path / "driver.log").read_text()[-3000:]
        world.is_back()
        time.sleep(3)  # longer than a shard stays open
    evidence = world.registry.evidence(1)
    assert evidence is not None
    assert evidence.baseline is not None
    ((key, kept),) = world.registry.baselines(1)
    assert evidence.baseline.key == key
    arms = (Arm.ACTIVE, Arm.OFF, Arm.NGRAM)
    assert {(s.arm, s.round) for s in kept.samples} == {(arm, number) for arm in arms for number in range(ROUNDS)}
    assert {s.arm for s in evidence.samples} == {Arm.ACTIVE, Arm.CANDIDATE}
    assert set(kept.drafts_answering_as_off) == {world.versions[0].digest, world.versions[1].digest}
    for equality in evidence.equality:
        assert equality.reference is Arm.OFF
        assert equality.prompts == equality.identical > 0, f"{equality.arm}: fp32 answers differ from no speculation"
    assert evidence.environment.device == "cpu"
    assert evidence.environment.engine == "0.5.23"
    policy = measurement_plan(world.settings).policy
    assert judge(evidence.samples, evidence.equality, policy, evidence.baseline) == evidence.verdict
    captured = [world.registry.shard(key)[1] for key in world.registry.shard_keys(1)]
    lengths = [trace.prompt_length for data in captured for trace in decode(data) if trace.root.shape[0]]
    assert set(lengths) <= {len(PROMPT)}, "what was measured is no traffic"


def test_a_driver_that_dies_leaves_no_draft_on_trial_behind(world: World, tmp_path: Path) -> None:
    """Killed while the candidate is loaded: clients are refused, and when the lease is over the pod serves its own."""
    with world.pod.agent():
        assert world.pod.request_measurement("job-2", 120, begin=True) == 202
        with world.driver(2, tmp_path / "driver.log") as driver:
            world.wait("the candidate on trial", lambda: world.held() == "1" or driver.poll() is not None)
            driver.kill()
        assert world.held() == "1", (tmp_path / "driver.log").read_text()[-3000:]
        assert http_status(f"{world.pod.agent_url}/readyz") == 503
        body = {"input_ids": PROMPT, "sampling_params": {"temperature": 0, "max_new_tokens": 4}}
        assert http_status(f"{world.pod.engine_url}/generate", body) == 503
        guessed = {PASS_HEADER: "job-2", MEASUREMENT_HEADER: "job-2"}
        assert http_status(f"{world.pod.engine_url}/generate", body, headers=guessed) == 503, "a name is no pass"
        earned = {PASS_HEADER: measurement_pass(AGENT_TOKEN, "job-2")}
        assert http_status(f"{world.pod.engine_url}/generate", body, headers=earned) == 200
        chat = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
        assert http_status(f"{world.pod.engine_url}/v1/chat/completions", chat) == 503
        log = (tmp_path / "driver.log").read_text()
        assert "is used" in log, "the baseline of the first measurement spares the starts of the engine"
        world.is_back()


def test_an_agent_that_restarts_while_its_pod_is_measured_brings_it_back(world: World, tmp_path: Path) -> None:
    with contextlib.ExitStack() as drivers:
        with world.pod.agent() as agent:
            assert world.pod.request_measurement("job-3", 600, begin=True) == 202
            driver = drivers.enter_context(world.driver(3, tmp_path / "driver.log"))
            world.wait("the candidate on trial", lambda: world.held() == "1" or driver.poll() is not None)
            agent.kill()
        with world.pod.agent():
            world.is_back()
            assert driver.wait(300) == 1, "it could not measure, and says nothing of the candidate"
            world.is_back()
    assert [key for key in world.registry.objects.list("evidence/") if key.endswith("00000003.json")] == []
