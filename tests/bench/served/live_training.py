"""Trains a draft on live traffic, and keeps a checkpoint of the draft after each part of the traffic.

Every part of the service is real, and nothing is recorded. A client sends chat requests to a pod, whose containers run
as processes. SGLang's capture writes traces to a real S3. The trainer's process learns from them and registers
versions, and the pod swaps to each version while it answers. Kubernetes and the gate are left out: the trainer
registers only versions that gained on held-out requests, and the bench measures the speed of these versions afterwards.

Invariants: a checkpoint is the version that the pod served when the trainer had learned from every trace so far. A
failed request or a failed swap ends the bench. No conversation takes place twice.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from tests.assets.model import ensure_model
from tests.assets.pod_processes import PodProcesses, initial_channel
from tests.assets.s3 import S3, seaweedfs
from tests.assets.signing import KEYS
from tests.assets.trace_budget import TRACE_ALL
from tests.assets.trainer_process import running_trainer, trainer_settings, wait_for
from tests.bench.served.messages import traffic
from tests.traffic.driver import Conversation, Load, RequestOptions, TrafficDriver

from aurora_api.v1alpha1.draft import DraftSpec
from aurora_api.v1alpha1.training import TrainingSpec
from aurora_protocol.agent_api import LiveCounters, SwapPhase, SwapRequest
from aurora_protocol.pod_settings import CaptureOptions, ServingSettings, TrainerSettings
from aurora_protocol.training_records import TrainerPhase
from aurora_runtime.errors import MeasurementError
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.training.state import trainer_state
from aurora_runtime.validation.store_reads import FetchedDraft
from aurora_store import ObjectStore

CONCURRENCY: Final = 4
POLL_SECONDS: Final = 1.0
SHARD_SECONDS: Final = 5
PUBLISH_SECONDS: Final = 20
"""SHARD_SECONDS and PUBLISH_SECONDS are below the defaults, because a run takes minutes, not days."""
IDLE_SECONDS: Final = 2 * PUBLISH_SECONDS
"""A trainer that has waited for traces this long has finished its replay passes and registered its last version."""
TRAINING_TIMEOUT_SECONDS: Final = 2400.0
TRAFFIC_TIMEOUT_SECONDS: Final = 3600.0
RECORD_FILE: Final = "training_record.json"
PERIODS_FILE: Final = "version_periods.json"
TRAINER_LOG: Final = "trainer.log"


@dataclass(frozen=True)
class TrainingRecord:
    """The traffic and the training behind a checkpoint.

    Attributes:
        tokens: answer tokens of the traffic, held-out requests included.
        requests: requests of the traffic, held-out ones included.
        steps: optimizer steps.
        positions: trained positions, every repetition counted.
        cpu_seconds: CPU time of the trainer's process.
        version: the version's number in the registry.
        settled_seconds: from the last request until the trainer had made its replay passes.
    """

    tokens: int
    requests: int
    steps: int
    positions: int
    cpu_seconds: float
    version: int
    settled_seconds: float

    @classmethod
    def read(cls, draft: Path) -> TrainingRecord:
        """The record in the folder of a checkpoint. Raises :class:`FileNotFoundError` if there is none."""
        return cls(**json.loads((draft / RECORD_FILE).read_text()))


@dataclass(frozen=True)
class Checkpoint:
    """A draft as an engine loads it, with its training record. The draft's version is the checkpoint's index."""

    draft: FetchedDraft
    record: TrainingRecord

    @property
    def name(self) -> str:
        return f"EAGLE-3 after {self.record.tokens / 1000:.1f}k" if self.record.tokens else "EAGLE-3 untrained"


@dataclass(frozen=True)
class TrafficPart:
    """Requests of one domain until their answers hold nearly ``tokens`` tokens, or until the domain's traffic ends."""

    domain: str
    tokens: int


@dataclass(frozen=True)
class VersionPeriod:
    """The time in which one version served, by the pod's own counters.

    Attributes:
        until_tokens: answer tokens of the whole traffic when the period ended.
        acceptance_length: answer tokens per verify round; None when there was no round.
    """

    version: int
    until_tokens: int
    acceptance_length: float | None


@dataclass(frozen=True)
class LiveTraining:
    """The outcome: checkpoints of the untrained draft and after each part, and the versions that served meanwhile."""

    checkpoints: Sequence[Checkpoint]
    periods: Sequence[VersionPeriod]


def train_on_live_traffic(
    parts: Sequence[TrafficPart], folder: Path, spec: DraftSpec, unroll_steps: int, max_answer_tokens: int
) -> LiveTraining:
    """Serve ``parts`` one after the other in one service, and keep a checkpoint before them and after each.

    The outcome is written to ``folder``. If the folder contains an outcome already, nothing is served and the existing
    outcome is returned.

    Args:
        spec: the draft, and the shape of the pod's verify rounds.
        unroll_steps: how many draft steps the trainer unrolls.
    """
    folders = [folder / str(number) for number in range(len(parts) + 1)]
    periods_file = folder / PERIODS_FILE  # written last
    if not periods_file.exists():
        shutil.rmtree(folder, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix="live-bench-") as work, seaweedfs() as s3:
            service = LiveService.of(s3, Path(work), spec, unroll_steps, max_answer_tokens)
            with service.running():
                service.keep_checkpoint(folders[0])
                for part, checkpoint_folder in zip(parts, folders[1:], strict=True):
                    service.serve(part)
                    service.keep_checkpoint(checkpoint_folder)
        periods_file.write_text(json.dumps([asdict(period) for period in service.periods]))
    checkpoints = [
        Checkpoint(FetchedDraft(each, number), TrainingRecord.read(each)) for number, each in enumerate(folders)
    ]
    periods = [VersionPeriod(**period) for period in json.loads(periods_file.read_text())]
    return LiveTraining(checkpoints, periods)


@dataclass
class LiveService:
    """A pod and a trainer that share a store."""

    s3: S3
    registry: PodRegistry
    pod: PodProcesses
    training: TrainerSettings
    work: Path
    max_answer_tokens: int
    tokens: int = field(default=0, init=False)
    requests: int = field(default=0, init=False)
    periods: list[VersionPeriod] = field(default_factory=list, init=False)
    _waiting: dict[str, Iterator[Conversation]] = field(default_factory=dict, init=False)
    _served_version: int = field(default=0, init=False)
    _kept_version: int | None = field(default=None, init=False)
    _counters_at_period_start: LiveCounters = field(default_factory=LiveCounters, init=False)
    _trainer: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _settled_seconds: float = field(default=0.0, init=False)

    @classmethod
    def of(cls, s3: S3, work: Path, spec: DraftSpec, unroll_steps: int, max_answer_tokens: int) -> LiveService:
        objects = ObjectStore(s3.config())
        objects.ensure_bucket()
        registry = PodRegistry(objects, KEYS)
        deepest = spec.model_copy(update={"steps": unroll_steps})
        training = trainer_settings(registry, ensure_model(), TrainingSpec(publish_tokens=256), deepest).model_copy(
            update={"publish_seconds": PUBLISH_SECONDS}
        )
        settings = ServingSettings(
            namespace=training.namespace,
            name=training.name,
            target=training.target,
            draft=spec,
            device=training.device,
            capture=CaptureOptions(tokens_per_minute=TRACE_ALL, shard_seconds=SHARD_SECONDS),
            store=training.store,
        )
        pod = PodProcesses(work / "pod", settings, s3.environment())
        return cls(s3, registry, pod, training, work, max_answer_tokens)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Start the trainer, then the pod with the untrained draft. Stop both on exit."""
        log = self.work / TRAINER_LOG
        with running_trainer(self.s3, self.training, log) as process:
            self._trainer = process
            wait_for("the initial draft", lambda: self.registry.last_version() is not None, process, log)
            self.registry.advance_channel(initial_channel())
            staged = self.pod.stage()
            if staged.returncode:
                raise MeasurementError(
                    f"staging the pod's draft failed: {staged.stderr.decode(errors='replace')[-2000:]}"
                )
            with self.pod.engine(), self.pod.agent():
                yield

    def serve(self, part: TrafficPart) -> None:
        """Send the traffic of ``part``, swap to every new version, and wait until the trainer has learned from it."""
        options = RequestOptions(max_tokens=self.max_answer_tokens)
        load = Load(self.pod.engine_url, concurrency=CONCURRENCY, options=options)
        waiting = self._waiting.setdefault(part.domain, iter(traffic(part.domain)))
        driver = TrafficDriver(load, conversations=waiting)
        driver.start()
        deadline = time.monotonic() + TRAFFIC_TIMEOUT_SECONDS
        # Stop early: the driver sends requests until the next poll, and requests in flight still finish.
        stop_at_tokens = part.tokens - 2 * CONCURRENCY * self.max_answer_tokens
        while (now := driver.summary()).answer_tokens < stop_at_tokens and driver.running:
            self._swap_to_newest(self.tokens + now.answer_tokens)
            if time.monotonic() > deadline:
                raise MeasurementError(
                    f"{part.domain}: only {now.answer_tokens} of {part.tokens} answer tokens after "
                    f"{TRAFFIC_TIMEOUT_SECONDS:.0f} s"
                )
            time.sleep(POLL_SECONDS)
        summary = driver.stop()
        if summary.failed or (summary.answer_tokens < stop_at_tokens and next(waiting, None) is not None):
            raise MeasurementError(
                f"{part.domain}: traffic ended after {summary.answer_tokens} of {part.tokens} answer tokens: "
                f"{summary.failures}"
            )
        self.tokens += summary.answer_tokens
        self.requests += summary.requests
        self._end_period(self.tokens, self.pod.state().live)
        speed = f"{summary.tokens_per_second:.1f} tok/s"
        print(f"{part.domain}: {summary.answer_tokens} answer tokens at {speed}", flush=True)
        self._wait_until_trainer_is_idle()

    def _swap_to_newest(self, tokens: int) -> None:
        """Have the pod swap to the newest version, unless it serves that version already.

        Args:
            tokens: answer tokens of the whole traffic so far.
        """
        if self._trainer is not None and self._trainer.poll() is not None:
            raise MeasurementError(f"the trainer ended: {(self.work / TRAINER_LOG).read_text()[-2000:]}")
        newest = self.registry.last_version()
        if newest is None or newest == self._served_version:
            return
        digest = self.registry.registration(newest).digest
        status = self.pod.request_swap(SwapRequest(version=newest, digest=digest, epoch=1))
        state = self.pod.wait_until_swap_ends()
        if state.swap.phase is not SwapPhase.IDLE or state.version != newest:
            raise MeasurementError(
                f"the pod did not swap to version {newest}: the agent answered {status}, then: {state.swap.error}"
            )
        self._end_period(tokens, state.live)
        self._served_version = newest
        print(f"{tokens} answer tokens: version {newest}", flush=True)

    def _end_period(self, tokens: int, live: LiveCounters) -> None:
        """End the period of the version that served until now.

        Engines count a request when it ends. A period therefore holds the beginnings of a few requests that the
        previous version served.
        """
        ended = live.since(self._counters_at_period_start)
        length = ended.tokens / ended.rounds if ended.rounds else None
        self.periods.append(VersionPeriod(self._served_version, tokens, length))
        self._counters_at_period_start = live

    def _wait_until_trainer_is_idle(self) -> None:
        """Wait until the trainer has learned from every trace, replayed, and registered its last version.

        Raises:
            MeasurementError: the trainer did not finish in time.
        """
        began = idle_since = time.monotonic()
        while time.monotonic() - idle_since < IDLE_SECONDS:
            if time.monotonic() - began > TRAINING_TIMEOUT_SECONDS:
                raise MeasurementError(f"the trainer did not finish in {TRAINING_TIMEOUT_SECONDS:.0f} s")
            state, status = self.registry.trainer_state_record(), self.registry.trainer_status()
            is_waiting = status is not None and status.phase is TrainerPhase.WAITING_FOR_TRACES
            if (
                not is_waiting
                or state is None
                or {*self.registry.list_shards(state.lineage).data_bytes} != {*state.consumed}
            ):
                idle_since = time.monotonic()
            self._swap_to_newest(self.tokens)
            time.sleep(POLL_SECONDS)
        self._settled_seconds = idle_since - began
        print(f"the trainer finished {self._settled_seconds:.0f} s after the last request", flush=True)

    def keep_checkpoint(self, folder: Path) -> None:
        """Write the served version to ``folder``, with its training record.

        Raises:
            MeasurementError: the version was kept before, because so little traffic led to no new version.
        """
        if self._kept_version == self._served_version:
            raise MeasurementError(
                f"the trainer registered no version after {self._kept_version}: ask for more answer tokens"
            )
        self._kept_version = self._served_version
        part = folder.with_name(f".{folder.name}.part")
        self.registry.fetch_checkpoint(self.registry.registration(self._served_version), part)
        (part / RECORD_FILE).write_text(json.dumps(asdict(self._record())))
        os.rename(part, folder)

    def _record(self) -> TrainingRecord:
        lineage = self.registry.lineage()
        state = trainer_state.read(self.registry, lineage) if lineage else None
        steps, positions = (int(n) for n in state.tensors["counters"]) if state else (0, 0)
        assert self._trainer is not None
        return TrainingRecord(
            tokens=self.tokens,
            requests=self.requests,
            steps=steps,
            positions=positions,
            cpu_seconds=_cpu_seconds(self._trainer.pid),
            version=self._served_version,
            settled_seconds=self._settled_seconds,
        )


def _cpu_seconds(pid: int) -> float:
    """CPU time of a process so far (proc_pid_stat(5): utime and stime, in clock ticks)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
