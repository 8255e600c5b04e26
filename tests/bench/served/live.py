"""Drafts as they are after so much live traffic: nothing recorded, all parts real, without Kubernetes and the gate.

A client sends chat requests to a pod (its containers as processes), SGLang's capture writes what it sees to a real S3,
the trainer's process learns from it and offers versions, and the pod swaps to each while it answers. Only the gate is
left out: an offer has gained on held-out requests, and what serving it is worth is what the bench measures afterwards.

Invariants: a checkpoint is the version that the pod served when the trainer had learnt from every trace of its part;
a failed request or swap ends the bench; no message is sent twice.
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
from tests.assets.trainer_process import running_trainer, trainer_settings, wait_for
from tests.bench.served.messages import traffic
from tests.traffic.driver import Load, RequestOptions, TrafficDriver

from aurora_api.v1alpha1.capture import CaptureSpec
from aurora_api.v1alpha1.draft import DraftSpec
from aurora_api.v1alpha1.training import TrainingSpec
from aurora_protocol.agent_api import LiveCounters, SwapPhase, SwapRequest
from aurora_protocol.pod_settings import ServingSettings, TrainerSettings
from aurora_protocol.training_records import TrainerPhase
from aurora_runtime.errors import MeasurementError
from aurora_runtime.training.state import trainer_state
from aurora_runtime.validation.draft_fetch import FetchedDraft
from aurora_store import ObjectStore, Registry

CONCURRENCY: Final = 4
POLL_S: Final = 1.0
SHARD_SECONDS: Final = 5
PUBLISH_SECONDS: Final = 20
"""Fast enough for a run of minutes; a service has days, and its defaults."""
SETTLE_S: Final = 2 * PUBLISH_SECONDS
"""The trainer waits for traces this long: so it has made its passes, and the last offer."""
STEADY_S: Final = 2400.0
LONGEST_S: Final = 3600.0
FACTS: Final = "learnt.json"
TRAINER_LOG: Final = "trainer.log"


@dataclass(frozen=True)
class Learnt:
    """How a checkpoint came to be. ``tokens`` are answer tokens of the traffic, held-out requests included."""

    tokens: int
    requests: int
    steps: int
    positions: int  # trained, every repetition counted
    cpu_seconds: float  # of the trainer's process
    version: int  # in the registry
    settled_seconds: float  # from the last request until the trainer had made its passes


@dataclass(frozen=True)
class Checkpoint:
    """A draft as an engine loads it, and how it came to be. Its version is its place among the checkpoints."""

    draft: FetchedDraft
    learnt: Learnt

    @property
    def name(self) -> str:
        return f"EAGLE-3 after {self.learnt.tokens / 1000:.1f}k" if self.learnt.tokens else "EAGLE-3 untrained"


@dataclass(frozen=True)
class Part:
    """Requests of one domain until their answers hold nearly ``tokens``, or there are no more."""

    domain: str
    tokens: int


@dataclass(frozen=True)
class Seen:
    """What the pod's own counters said of one version's time."""

    version: int
    until_tokens: int  # answer tokens of the whole traffic at its end
    accept_length: float | None


def checkpoints(
    parts: Sequence[Part], folder: Path, spec: DraftSpec, unroll: int, longest: int
) -> tuple[list[Checkpoint], list[Seen]]:
    """The draft of day 0 and the one after each of ``parts``, in one service one after the other; served once for a
    ``folder``. ``unroll`` are the trainer's steps, ``longest`` an answer's tokens."""
    places = [folder / str(number) for number in range(len(parts) + 1)]
    history = folder / "live.json"  # written last
    if not history.exists():
        shutil.rmtree(folder, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix="live-bench-") as work, seaweedfs() as s3:
            service = Service.of(s3, Path(work), spec, unroll, longest)
            with service.running():
                service.keep(places[0])
                for part, place in zip(parts, places[1:], strict=True):
                    service.serve(part)
                    service.keep(place)
        history.write_text(json.dumps([asdict(one) for one in service.seen]))
    drafts = [
        Checkpoint(FetchedDraft(place, number), Learnt(**json.loads((place / FACTS).read_text())))
        for number, place in enumerate(places)
    ]
    return drafts, [Seen(**one) for one in json.loads(history.read_text())]


@dataclass
class Service:
    """A pod and a trainer that share a store."""

    s3: S3
    registry: Registry
    pod: PodProcesses
    training: TrainerSettings
    work: Path
    longest: int
    tokens: int = 0
    requests: int = 0
    seen: list[Seen] = field(default_factory=list)
    _messages: dict[str, Iterator[str]] = field(default_factory=dict)
    _version: int = 0
    _before: LiveCounters = field(default_factory=LiveCounters)
    _trainer: subprocess.Popen[bytes] | None = None
    _settled: float = 0.0
    _kept: int | None = None

    @classmethod
    def of(cls, s3: S3, work: Path, spec: DraftSpec, unroll: int, longest: int) -> Service:
        objects = ObjectStore(s3.config())
        objects.ensure_bucket()
        registry = Registry(objects)
        recipe = TrainingSpec(unroll_steps=unroll, publish_tokens=1 << 20, publish_seconds=PUBLISH_SECONDS)
        training = trainer_settings(registry, ensure_model(), recipe, spec)
        settings = ServingSettings(
            namespace=training.namespace,
            name=training.name,
            target=training.target,
            draft=spec,
            capture=CaptureSpec(shard_seconds=SHARD_SECONDS),
            store=training.store,
        )
        return cls(s3, registry, PodProcesses(work / "pod", settings, s3.environment()), training, work, longest)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Start the trainer, then the pod with the untrained draft; stop both."""
        log = self.work / TRAINER_LOG
        with running_trainer(self.s3, self.training, log) as process:
            self._trainer = process
            wait_for("day 0", lambda: self.registry.last_version() is not None, process, log)
            self.registry.advance_channel(initial_channel())
            staged = self.pod.stage()
            if staged.returncode:
                raise MeasurementError(f"staging: {staged.stderr.decode(errors='replace')[-2000:]}")
            with self.pod.engine(), self.pod.agent():
                yield

    def serve(self, part: Part) -> None:
        """Send the traffic of ``part`` and swap to every version that is offered, until all of it is learnt."""
        load = Load(self.pod.engine_url, concurrency=CONCURRENCY, options=RequestOptions(max_tokens=self.longest))
        messages = self._messages.setdefault(part.domain, iter(traffic(part.domain)))
        driver = TrafficDriver(load, messages=messages)
        driver.start()
        deadline = time.monotonic() + LONGEST_S
        enough = part.tokens - 2 * CONCURRENCY * self.longest  # until it is seen, and those under way come to their end
        while (now := driver.summary()).answer_tokens < enough and driver.running:
            self._follow(self.tokens + now.answer_tokens)
            if time.monotonic() > deadline:
                raise MeasurementError(f"{now.answer_tokens} of {part.tokens} answer tokens in {LONGEST_S:.0f} s")
            time.sleep(POLL_S)
        done = driver.stop()
        if done.failed or (done.answer_tokens < enough and next(messages, None) is not None):
            raise MeasurementError(f"traffic ended after {done.answer_tokens} tokens: {done.failures}")
        self.tokens += done.answer_tokens
        self.requests += done.requests
        self._account(self.tokens, self.pod.state().live)
        print(f"{part.domain}: {done.answer_tokens} answer tokens at {done.tokens_per_second:.1f} tok/s", flush=True)
        self._steady()

    def _follow(self, tokens: int) -> None:
        """Have the pod swap to the newest version, if it does not serve it."""
        if self._trainer is not None and self._trainer.poll() is not None:
            raise MeasurementError(f"the trainer ended: {(self.work / TRAINER_LOG).read_text()[-2000:]}")
        newest = self.registry.last_version()
        if newest is None or newest == self._version:
            return
        digest = self.registry.registration(newest).digest
        status = self.pod.request_swap(SwapRequest(version=newest, digest=digest, epoch=1))
        state = self.pod.wait_until_swap_ends()
        if state.swap.phase is not SwapPhase.IDLE or state.version != newest:
            raise MeasurementError(f"no swap to version {newest}: status {status}, {state.swap.error}")
        self._account(tokens, state.live)
        self._version = newest
        print(f"{tokens} answer tokens: version {newest}", flush=True)

    def _account(self, tokens: int, live: LiveCounters) -> None:
        """Close the account of the version that served until now. Engines count a request when it ends, so each account
        holds the beginnings of a few that a former version served."""
        rounds = live.verify_rounds - self._before.verify_rounds
        accepted = live.accepted - self._before.accepted
        self.seen.append(Seen(self._version, tokens, 1 + accepted / rounds if rounds else None))
        self._before = live

    def _steady(self) -> None:
        """Wait until the trainer has learnt from every trace, made its passes and its last offer."""
        began = since = time.monotonic()
        while time.monotonic() - since < SETTLE_S:
            if time.monotonic() - began > STEADY_S:
                raise MeasurementError(f"the trainer did not finish in {STEADY_S:.0f} s")
            state, status = self.registry.trainer_state_record(), self.registry.trainer_status()
            idle = status is not None and status.phase is TrainerPhase.WAITING_FOR_TRACES
            if not idle or state is None or {*self.registry.shard_keys(state.lineage)} != {*state.consumed}:
                since = time.monotonic()
            self._follow(self.tokens)
            time.sleep(POLL_S)
        self._settled = since - began
        print(f"the trainer made its passes {self._settled:.0f} s after the last request", flush=True)

    def keep(self, place: Path) -> None:
        """Keep the version that is served, and how it came to be. Raises :class:`MeasurementError` when it is the one
        that was kept before: so little traffic taught nothing."""
        if self._kept == self._version:
            raise MeasurementError(f"no version was offered after {self._kept}: more tokens are needed")
        self._kept = self._version
        part = place.with_name(f".{place.name}.part")
        self.registry.fetch_checkpoint(self.registry.registration(self._version), part)
        (part / FACTS).write_text(json.dumps(asdict(self._learnt())))
        os.rename(part, place)

    def _learnt(self) -> Learnt:
        lineage = self.registry.lineage()
        state = trainer_state.read(self.registry, lineage.number) if lineage else None
        steps, positions = (int(n) for n in state.tensors["counters"]) if state else (0, 0)
        assert self._trainer is not None
        cpu = _cpu_seconds(self._trainer.pid)
        return Learnt(self.tokens, self.requests, steps, positions, cpu, self._version, self._settled)


def _cpu_seconds(pid: int) -> float:
    """CPU time of a process so far (proc_pid_stat(5): utime and stime, in clock ticks)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
