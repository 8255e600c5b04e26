"""A pod and its agent, for the state machine that drives the rollout alone."""

from __future__ import annotations

from dataclasses import dataclass, field

from aurora_operator.plan.rollout.world import Pod
from aurora_protocol.agent_api import LiveCounters, SwapPhase, SwapStatus
from tests.unit.operator.counters import counters

REQUESTS_PER_TICK = 50
REASONS_AWAY = ("", "node", "reboot")
"""Why a pod stays away: its engine loads, or its node is lost or restarts."""


@dataclass
class SimulatedPod:
    """Its agent keeps the contract: fencing, idempotent swaps, the previous version after a failed swap."""

    name: str
    version: int | None
    """None: the engine started without a draft."""
    ready: bool = True
    reachable: bool = True
    phase: SwapPhase = SwapPhase.IDLE
    asked: int | None = None
    asked_epoch: int | None = None
    """Epoch of the order for ``asked``."""
    transient: bool = False
    epoch: int = 0
    salt: str = ""
    slow: bool = False
    node_lost: bool = False
    """Kubernetes and the operator cannot reach the pod, whatever its engine does."""
    lone_restarts: int = 0
    """How often the engine was restarted without its agent."""
    failed_to_return: bool = False
    """The pod could not load the active version when it was asked last."""
    boot: int = 0
    live: LiveCounters = field(default_factory=LiveCounters)
    late: bool = True
    """The pod came up by itself and ended no swap since. It may hold the version that was active when it started."""

    def serve(self, acceptance_length: float) -> None:
        """Serve one tick of traffic, in requests of ten verify rounds."""
        if self.ready:
            self.live = self.live.plus(counters(REQUESTS_PER_TICK, acceptance_length, rounds=10))

    def crash(self, version: int | None, *, with_agent: bool = False) -> None:
        """The engine crashes. The next one starts with ``version``."""
        self.lone_restarts += not with_agent
        self.late &= self.phase is not SwapPhase.SWAPPING
        self.phase, self.ready, self.asked, self.version = SwapPhase.IDLE, False, None, version
        self.boot, self.live = self.boot + 1, LiveCounters()

    def swap(self, version: int, epoch: int) -> bool:
        """Whether the request is accepted: its epoch is no older than the last one."""
        if epoch < self.epoch:
            return False
        self.epoch = epoch
        if version == self.asked:
            self.asked_epoch = epoch
        if self.phase in (SwapPhase.STAGING, SwapPhase.SWAPPING) or (version == self.version and self.ready):
            return True
        self.phase, self.asked, self.asked_epoch = SwapPhase.SWAPPING, version, epoch
        return True

    def view(self) -> Pod:
        if self.node_lost:
            return Pod(self.name, ready=False, lone_restarts=self.lone_restarts)
        if not self.reachable:
            return Pod(
                self.name,
                ready=False,
                kubernetes_ready=self.ready,
                lone_restarts=self.lone_restarts,
            )
        return Pod(
            self.name,
            ready=self.ready,
            kubernetes_ready=self.ready,
            version=self.version,
            checksum=None if self.version is None else f"{self.version}{self.salt}",
            swap=SwapStatus(
                phase=self.phase,
                version=self.asked,
                epoch=self.asked_epoch,
                error="no",
                transient=self.transient,
            ),
            boot=str(self.boot),
            counters=self.live,
            lone_restarts=self.lone_restarts,
        )
