"""A pod and its agent, for the state machine that drives the rollout alone."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from aurora_operator.plan.rollout.world import Pod
from aurora_protocol.agent_api import LiveCounters, SwapPhase, SwapStatus

REQUESTS_PER_TICK = 50


@dataclass
class SimulatedPod:
    """Its agent keeps the contract: fencing, idempotent swaps, the previous version after a failed swap."""

    name: str
    version: int
    ready: bool = True
    reachable: bool = True
    phase: SwapPhase = SwapPhase.IDLE
    asked: int | None = None
    finished: datetime | None = None
    transient: bool = False
    epoch: int = 0
    salt: str = ""
    slow: bool = False
    boot: int = 0
    requests: int = 0
    tokens: int = 0
    late: bool = True
    """The pod came up by itself and got no request yet. It may hold the version that was active when it started."""

    def serve(self, acceptance_length: float) -> None:
        """Serve one tick of traffic, in requests of ten verify rounds."""
        if self.ready:
            self.requests += REQUESTS_PER_TICK
            self.tokens += int(10 * REQUESTS_PER_TICK * acceptance_length)

    def crash(self, version: int) -> None:
        """The engine crashes. The next one starts with ``version``."""
        self.phase, self.ready, self.asked, self.version = SwapPhase.IDLE, False, None, version
        self.boot, self.requests, self.tokens = self.boot + 1, 0, 0

    def swap(self, version: int, epoch: int) -> bool:
        """Whether the request is accepted: its epoch is no older than the last one."""
        if epoch < self.epoch:
            return False
        self.epoch = epoch
        if self.phase in (SwapPhase.STAGING, SwapPhase.SWAPPING) or (version == self.version and self.ready):
            return True
        self.phase, self.asked, self.late = SwapPhase.SWAPPING, version, False
        return True

    def view(self) -> Pod:
        if not self.reachable:
            return Pod(self.name, ready=False, starting=True, up=self.ready)
        return Pod(
            self.name,
            ready=self.ready,
            starting=not self.ready,
            up=self.ready,
            version=self.version,
            checksum=f"{self.version}{self.salt}",
            swap=SwapStatus(
                phase=self.phase, version=self.asked, finished=self.finished, error="no", transient=self.transient
            ),
            boot=str(self.boot),
            counters=LiveCounters(requests=self.requests, verify_rounds=10 * self.requests, answer_tokens=self.tokens),
        )
