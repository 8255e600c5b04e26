"""A small service in virtual time, for tests that assert whole sequences of rollout steps.

Pods complete a swap before the next reconcile, unless a test breaks them. Each reconcile is one line of text, such as
``Pass -> Rolling; b=1; CanaryPassed``: the judgement, the next phase, the pods that are asked for a version, the
change of the channel, and the event.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from aurora_api.v1alpha1.status import RolloutPhase
from aurora_operator.plan.rollout.judgement import Judgement
from aurora_operator.plan.rollout.machine import Step, judged_step
from aurora_operator.plan.rollout.roll import Roll
from aurora_operator.plan.rollout.world import Pod, RolloutPolicy, World
from aurora_protocol.agent_api import LiveCounters, SwapPhase, SwapStatus
from aurora_protocol.draft_records import ChannelReason
from tests.unit.operator.counters import counters
from tests.unit.operator.rolls import JUDGED, NOW, PAUSED, check_row

SECONDS_BETWEEN_RECONCILES = 10
REQUESTS_PER_RECONCILE = 100
REFUSED = "shapes differ"


@dataclass
class ServicePod:
    """One pod. ``boot`` counts its engine's starts, and ``lone_restarts`` those without its agent."""

    name: str
    version: int = 0
    ready: bool = True
    boot: int = 0
    counters: LiveCounters = field(default_factory=LiveCounters)
    swap: SwapStatus = field(default_factory=SwapStatus)
    starts: bool = False
    """The pod is new, and ready at the reconcile after the next one."""
    lone_restarts: int = 0

    def view(self) -> Pod:
        if not self.ready:
            return Pod(self.name, ready=False, lone_restarts=self.lone_restarts)
        return Pod(
            self.name,
            ready=True,
            kubernetes_ready=True,
            version=self.version,
            checksum=f"sum-{self.version}",
            swap=self.swap,
            boot=str(self.boot),
            counters=self.counters,
            lone_restarts=self.lone_restarts,
        )

    def crash(self, *, with_agent: bool = False) -> None:
        """The engine ends, and the next one starts at once with the same version."""
        self.boot, self.counters = self.boot + 1, LiveCounters()
        self.lone_restarts += not with_agent

    def reload(self, *, with_agent: bool = False) -> None:
        """The engine ends, and the next one loads its model."""
        self.crash(with_agent=with_agent)
        self.ready = False


class Service:
    """Pods a, b, c…, a channel, and an operator that reconciles every :data:`SECONDS_BETWEEN_RECONCILES`."""

    def __init__(self, pods: int, **policy: Any) -> None:
        self.pods = [ServicePod(name) for name in "abcdefgh"[:pods]]
        self.policy = RolloutPolicy.model_validate({"analysis": JUDGED, "progress_deadline_seconds": 60, **policy})
        self.now, self.roll = NOW, Roll()
        self.active, self.epoch = 0, 1
        self.previous: int | None = None
        self.channel_reason = ChannelReason.INITIAL
        self.rejected: set[int] = set()
        self.passed: int | None = 1
        """The version that passed its measurement."""
        self.acceptance_length: dict[int, float] = {}
        """By version; 2.0 for a version that is not listed. A change takes effect at once."""
        self.traffic = True
        self.refuses: set[str] = set()
        """Names of the pods that cannot load the draft."""
        self.joined = pods
        """Number of pods that have ever joined."""
        self.people: dict[str, Any] = {}
        """Requests of people, as fields of :class:`World`."""
        self.restarted = False

    def __getitem__(self, name: str) -> ServicePod:
        return next(pod for pod in self.pods if pod.name == name)

    def set_policy(self, **policy: Any) -> None:
        self.policy = self.policy.model_copy(update=policy)

    def world(self) -> World:
        next_version = self.passed if self.passed != self.active and self.passed not in self.rejected else None
        world = World(
            now=self.now,
            active=self.active,
            previous=self.previous,
            epoch=self.epoch,
            rejected=frozenset(self.rejected),
            channel_reason=self.channel_reason,
            channel_message="the channel's message",
            pods=tuple(pod.view() for pod in self.pods),
            policy=self.policy,
            paused=PAUSED if self.policy.paused else "",
            next_version=next_version,
            promotable=frozenset() if next_version is None else frozenset({next_version}),
            observation_gap=self.restarted,
        )
        return replace(world, **self.people)

    def scale(self, replicas: int, *, first: str = "") -> None:
        """Scale to ``replicas`` pods, as an autoscaler does. The pod ``first`` leaves first, then the newest leave."""
        kept = sorted(self.pods, key=lambda pod: pod.name == first)[:replicas]
        self.pods = [pod for pod in self.pods if pod in kept]
        for name in "abcdefgh"[self.joined : self.joined + replicas - len(self.pods)]:
            self.joined += 1
            self.pods.append(ServicePod(name, self.active, ready=False, starts=True))

    def reconcile(self, *, dies_before: str = "") -> str:
        """Reconcile once. The operator may die before it writes to the channel, stores the roll ("status") or swaps."""
        world = self.world()
        judgement, made = judged_step(world, self.roll)
        check_row(judgement, self.roll, made)
        self.restarted = bool(dies_before)
        if dies_before != "channel":
            self._write_channel(made)
        if dies_before not in ("channel", "status"):
            self.roll = made.rollout
        if not dies_before:
            self._swap(made)
        self._pass_time()
        return line(judgement, made)

    def reconcile_times(self, count: int) -> list[str]:
        return [self.reconcile() for _ in range(count)]

    def reconcile_until_idle(self, limit: int = 60) -> list[str]:
        """Reconcile until a roll has begun and ended, and all pods are back, at most ``limit`` times."""
        lines: list[str] = []
        while not lines or self.roll.phase is not RolloutPhase.IDLE or self.has_strays:
            lines.append(self.reconcile())
            assert len(lines) <= limit, f"still under way: {self.roll.phase}, {self.roll.message}"
        return lines

    @property
    def has_strays(self) -> bool:
        """Whether a pod that is ready serves another version than the active one."""
        return any(pod.ready and pod.version != self.active for pod in self.pods)

    def _write_channel(self, made: Step) -> None:
        if made.advance is None:
            return
        if made.advance.active != self.active:
            returned = made.advance.reason is ChannelReason.ROLLED_BACK
            self.active, self.previous = made.advance.active, None if returned else self.active
        self.rejected |= set() if made.advance.reject is None else {made.advance.reject}
        self.epoch, self.channel_reason = self.epoch + 1, made.advance.reason

    def _swap(self, made: Step) -> None:
        for name, version in made.swaps.items():
            pod = self[name]
            if name in self.refuses and version != self.active:
                epoch = made.rollout.epoch
                pod.swap = SwapStatus(phase=SwapPhase.FAILED, version=version, epoch=epoch, error=REFUSED)
            else:
                pod.version, pod.swap = version, SwapStatus(version=version)

    def _pass_time(self) -> None:
        self.now += timedelta(seconds=SECONDS_BETWEEN_RECONCILES)
        for pod in self.pods:
            if pod.starts:
                pod.ready, pod.starts = True, False
            elif self.traffic and pod.ready:
                length = self.acceptance_length.get(pod.version, 2.0)
                pod.counters = pod.counters.plus(counters(REQUESTS_PER_RECONCILE, length))


def line(judgement: Judgement, made: Step) -> str:
    """A reconcile as text, without its empty parts."""
    swaps = " ".join(f"{name}={version}" for name, version in sorted(made.swaps.items()))
    channel = ""
    if made.advance is not None:
        reject = "" if made.advance.reject is None else f", reject {made.advance.reject}"
        channel = f"active {made.advance.active}{reject}"
    cells = (f"{type(judgement).__name__} -> {made.rollout.phase}", swaps, channel, made.event)
    return "; ".join(cell for cell in cells if cell)


def sequence(text: str) -> list[str]:
    """The expected reconciles, one a line. ``3 x`` in front repeats a line."""
    lines: list[str] = []
    for row in text.strip().splitlines():
        count, times, rest = row.strip().partition(" x ")
        lines += [rest] * int(count) if times else [row.strip()]
    return lines
