"""A simulated store, pods with agents, and Jobs in virtual time, for state machines that drive the whole plan.

The simulated parts keep the contracts of the real ones: create-once, optimistic locking, fencing, and the previous
draft after a failed swap. A test can inject faults: agents are silent or lie, the store is out of reach, evidence comes
late.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from aurora_operator.errors import Conflict
from aurora_operator.observe.observed import JobView, PodView, StoreView
from aurora_protocol.agent_api import (
    AgentState,
    LiveCounters,
    MeasurementPhase,
    MeasurementStatus,
    SwapPhase,
    SwapRequest,
    SwapStatus,
)
from aurora_protocol.draft_records import INITIAL_VERSION, Channel, Registration
from aurora_protocol.errors import AgentError, Fenced
from aurora_protocol.evidence_records import Evidence, MeasurementEnd, VerdictKind
from aurora_store.errors import ObjectExists, StoreError
from tests.unit.operator.counters import counters
from tests.unit.operator.worlds import digest, evidence, lineage, registration, trainer_record

REQUESTS_PER_TICK = 50
LIES = ("version", "checksum", "swapped", "counters", "boot", "busy")
"""Wrong statements that an agent can make: another version, another checksum, a swap that did not happen, fewer
requests than before, another engine start, a swap that never ends."""


@dataclass
class SimulatedStore:
    """Create-once records. While ``down``, the view carries an error and writes raise."""

    down: bool = False
    channels: dict[int, Channel] = field(default_factory=dict)
    registrations: dict[int, Registration] = field(default_factory=dict)
    evidence: dict[tuple[int, int], Evidence] = field(default_factory=dict)
    held_out: int | None = None
    """Held-out requests that the trainer reports. The trainer is never silent."""

    @property
    def channel(self) -> Channel | None:
        return self.channels[max(self.channels)] if self.channels else None

    @property
    def newest(self) -> int:
        return max(self.registrations, default=-1)

    def passed(self, version: int | None) -> bool:
        """Whether ``version`` passed the gate once. The initial draft need not pass."""
        proofs = (e for e in self.evidence.values() if e.version == version)
        return version == INITIAL_VERSION or any(e.verdict.kind is VerdictKind.PASS for e in proofs)

    def register(self, version: int) -> None:
        self.registrations.setdefault(version, registration(version))

    def advance(self, channel: Channel) -> None:
        if self.down:
            raise StoreError("no route")
        if channel.epoch in self.channels:
            raise ObjectExists(f"epoch {channel.epoch}")
        self.channels[channel.epoch] = channel

    def view(self, versions: frozenset[int]) -> StoreView:
        """The view that :class:`aurora_operator.observe.store.store_reader.StoreReader` would return."""
        if self.down:
            return StoreView(reason="Unreachable", error="no route")
        channel = self.channel
        wanted = versions | {INITIAL_VERSION, self.newest}
        if channel is not None:
            wanted |= {channel.active} | (set() if channel.previous is None else {channel.previous})
        known = {version: self.registrations[version] for version in sorted(wanted) if version in self.registrations}
        found = tuple(proof for (version, _), proof in sorted(self.evidence.items()) if version in known)
        trainer = trainer_record(held_out_requests=self.held_out)
        return StoreView(lineage=lineage(), channel=channel, registrations=known, evidence=found, trainer=trainer)


@dataclass
class SimulatedPod:
    """A pod and its agent. ``version`` is what the engine really holds. None: it started without a draft."""

    name: str
    version: int | None
    up: bool = False
    """The engine answers, and the pod is ready."""
    scheduled: bool = True
    """The pod has a node. Without a node nothing of the pod runs."""
    slow: bool = False
    """Swaps never end, and the engine never becomes ready."""
    silent: bool = False
    lost: bool = False
    """Kubernetes and the operator cannot reach the pod's node."""
    lie: str = ""
    salt: str = ""
    phase: SwapPhase = SwapPhase.IDLE
    asked: SwapRequest | None = None
    boot: int = 0
    live: LiveCounters = field(default_factory=LiveCounters)
    views: int = 0
    taken: int = 0
    seconds: float = 0.0
    """``taken`` observations and ``seconds`` of observed time since the swap or the engine's start began."""
    late: bool = True
    """The pod started by itself and got no request yet. It may hold the version that was active when it started."""
    measurement: str = ""
    """The measurement that the pod is withdrawn for. The pod serves no client until its lease (seconds) is over."""
    lease: float = 0.0

    @property
    def serves(self) -> bool:
        return self.up and not self.measurement

    @property
    def swapping(self) -> bool:
        return self.phase in (SwapPhase.STAGING, SwapPhase.SWAPPING)

    @property
    def faulty(self) -> bool:
        return bool(self.slow or self.silent or self.lost or self.lie or self.salt)

    @property
    def _seen_epoch(self) -> int | None:
        return self.asked.epoch if self.asked is not None else None

    def serve(self, acceptance_length: float) -> None:
        """Serve one tick of traffic, in requests of ten verify rounds."""
        if self.serves:
            self.live = self.live.plus(counters(REQUESTS_PER_TICK, acceptance_length, rounds=10))

    def crash(self, version: int | None) -> None:
        """The engine crashes, possibly in the middle of a swap. The next engine starts with ``version``."""
        self.phase, self.up, self.version = SwapPhase.IDLE, False, version
        self.boot, self.live, self.lease = self.boot + 1, LiveCounters(), 0.0

    def lend(self, measurement: str, epoch: int) -> bool:
        """Withdraw the pod for a Job. Returns whether it is lent: it answers, serves, and knows no newer decision."""
        fenced = self.asked is not None and epoch < self.asked.epoch
        if self.silent or self.lost or fenced or not self.serves or self.swapping:
            return False
        self.measurement, self.lease = measurement, 60.0
        return True

    def return_to_service(self) -> None:
        """Serve the former version again, once the lease is over and the engine is up."""
        if self.measurement and self.lease <= 0 and self.up:
            self.measurement, self.late = "", True

    def request(self, request: SwapRequest) -> None:
        """Start a swap. Raises :class:`Fenced` (HTTP 409) for an old epoch or during another swap."""
        if self.silent or self.lost:
            raise AgentError("no answer")
        if self.asked is not None and request.epoch < self.asked.epoch:
            raise Fenced("a higher epoch was seen", 409, "", self.asked.epoch)
        if self.swapping:
            if self.asked is not None and request.version == self.asked.version:
                return
            raise Fenced("another swap is going on", epoch=self._seen_epoch)
        if not self.serves:
            raise AgentError("the engine is not up yet, or the pod is withdrawn")
        self.asked = request
        if request.version != self.version:
            self.phase, self.late = SwapPhase.SWAPPING, False

    def end_swap(self, *, works: bool) -> None:
        assert self.asked is not None
        self.phase = SwapPhase.IDLE if works else SwapPhase.FAILED
        self.version = self.asked.version if works else self.version

    def view(self) -> PodView:
        self.views += 1
        if not self.scheduled:
            return PodView(self.name, waiting="Unschedulable", scheduler_message="no node has room")
        if self.lost:
            return PodView(self.name, ip="10.0.0.9", scheduled=True, lone_restarts=self.boot)
        state = None if self.silent else self._state()
        return PodView(
            self.name,
            ip=f"10.0.0.{self.name[-2:]}",
            ready=self.serves,
            scheduled=True,
            agent=state,
            lone_restarts=self.boot,
        )

    def _state(self) -> AgentState:
        reported: dict[str, Any] = {"version": self.version, "boot": str(self.boot), "live": self.live}
        swap = SwapStatus(
            phase=self.phase,
            version=self.asked.version if self.asked else None,
            epoch=self._seen_epoch,
            error="no",
        )
        if self.lie == "version":
            reported["version"] = 99
        elif self.lie == "boot":
            reported["boot"] = f"{self.boot}-{self.views}"
        elif self.lie == "counters":
            reported["live"] = counters(self.live.requests // (1 + self.views % 7), 2.0)
        elif self.lie == "busy":
            swap = SwapStatus(phase=SwapPhase.SWAPPING, version=swap.version or 0)
        elif self.lie == "swapped" and self.asked is not None:
            reported["version"], swap = (
                self.asked.version,
                SwapStatus(version=self.asked.version),
            )
        suffix = "?" if self.lie == "checksum" else ""
        if self.measurement:
            phase = MeasurementPhase.MEASURING if self.lease > 0 else MeasurementPhase.RETURNING
            measurement = MeasurementStatus(measurement=self.measurement, phase=phase)
            return AgentState(pod=self.name, boot="", engine_ready=False, measurement=measurement)
        return AgentState(
            pod=self.name,
            boot=reported["boot"],
            engine_ready=self.up,
            version=reported["version"],
            checksum=None if reported["version"] is None else f"sum-{reported['version']}{self.salt}{suffix}",
            swap=swap,
            live=reported["live"],
        )


@dataclass
class SimulatedJob:
    """A validation Job. It measures against ``active``, even when another version is active by the time it ends."""

    version: int
    attempt: int
    active: int
    pod: str = ""
    """The replica that the Job measures on, and whose lease it renews. It asks for the pod a while after its start."""
    epoch: int = 0
    holds: bool = False
    ended: str = ""
    """``succeeded`` or ``failed``; empty while the Job runs."""

    def view(self, name: str) -> JobView:
        return JobView(
            name,
            self.version,
            self.attempt,
            succeeded=self.ended == "succeeded",
            failed=self.ended == "failed",
            message="too few prompts" if self.ended == "failed" else "",
        )

    def measured(self, kind: VerdictKind, end: MeasurementEnd | None = None) -> Evidence:
        return evidence(
            self.version,
            kind,
            active=self.active,
            attempt=self.attempt,
            active_digest=digest(self.active),
            end=end,
        )


@dataclass
class SimulatedCluster:
    """The custom resource and its children. The status is stored as JSON, as the API server would store it."""

    spec: dict[str, Any] = field(default_factory=dict)
    annotations: dict[str, int] = field(default_factory=dict)
    status: str = "{}"
    version: int = 1
    """The custom resource's resourceVersion."""
    pods: list[SimulatedPod] = field(default_factory=list)
    jobs: dict[str, SimulatedJob] = field(default_factory=dict)
    refuses_jobs: bool = False

    def pass_time(self, seconds: float) -> Counter[str]:
        """Leases run out unless the Job that measures on the pod renews them. A Job without a lease fails.

        Returns how often each Job was given a pod meanwhile.
        """
        lent = Counter[str]()
        for pod in self.pods:
            job = self.jobs.get(pod.measurement)
            renewed = job is not None and not job.ended and job.pod == pod.name and pod.lease > 0
            pod.lease = 60.0 if renewed else pod.lease - seconds
        pods = {pod.name: pod for pod in self.pods}
        for name, job in self.jobs.items():
            if not job.pod or job.ended:
                continue
            replica = pods.get(job.pod)
            if not job.holds and replica is not None and replica.lend(name, job.epoch):
                job.holds = True
                lent[name] += 1
            if replica is None or replica.measurement != name or replica.lease <= 0:
                job.ended = "failed"
        return lent

    def edited(self) -> None:
        self.version += 1

    def delete_pods(self, count: int, first: int) -> None:
        """Delete ``count`` pods as Kubernetes does: those without a node, those not ready, then from ``first`` on."""
        turned = [*self.pods[first:], *self.pods[:first]]
        leaving = {pod.name for pod in sorted(turned, key=lambda pod: (pod.scheduled, pod.serves))[:count]}
        self.pods = [pod for pod in self.pods if pod.name not in leaving]

    def write_status(self, status: str, observed_version: int) -> None:
        """Raises :class:`Conflict` when somebody wrote after ``observed_version``."""
        if observed_version != self.version:
            raise Conflict("moved on", 409)
        if status != self.status:
            self.status = status
            self.edited()
