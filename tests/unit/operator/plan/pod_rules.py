"""The rules for pods and their agents, which join, fail, swap, become slow and recover at any time."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from tests.unit.operator.promises import Promises
from tests.unit.operator.simulation import LIES, SimulatedPod


class PodRules(Promises):
    """The rules about pods, in virtual time."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.monotonic_seconds = datetime(2026, 1, 1, tzinfo=UTC), 0.0
        self.traffic = True
        self.joined = 0
        """Number of pods that have ever joined."""
        self.pace = 0
        """Number of reconciles that a swap or the start of an engine takes."""

    @precondition(lambda self: len(self.cluster.pods) < 5)
    @rule(slow=st.booleans(), draft=st.booleans())
    def pod_joins(self, *, slow: bool, draft: bool = True) -> None:
        """The pod has chosen its version and is not up yet. It may come up after the next promotion.

        Without a ``draft``, the pod could not reach the store, or found no draft there.
        """
        self.joined += 1
        version = self.channel.active if draft else None
        self.cluster.pods.append(SimulatedPod(f"pod-{self.joined:02d}", version, slow=slow))

    @rule(replicas=st.integers(0, 5), first=st.integers(0, 4), room=st.booleans())
    def autoscaler_scales(self, *, replicas: int, first: int, room: bool) -> None:
        """Without ``room``, new pods wait for a node. No version may be rejected for a scale-down, even to zero."""
        self.cluster.delete_pods(max(len(self.cluster.pods) - replicas, 0), first)
        while len(self.cluster.pods) < replicas:
            self.pod_joins(slow=False)
            self.cluster.pods[-1].scheduled = room
        self.cluster.edited()

    @precondition(lambda self: any(not pod.scheduled for pod in self.cluster.pods))
    @rule(count=st.integers(1, 5))
    def nodes_join(self, *, count: int) -> None:
        """Waiting pods get a node, and choose the version that is active now."""
        for pod in [pod for pod in self.cluster.pods if not pod.scheduled][:count]:
            pod.scheduled, pod.version = True, self.channel.active

    @precondition(lambda self: any(pod.scheduled for pod in self.cluster.pods))
    @rule(
        which=st.integers(0, 4),
        fault=st.sampled_from(["dies", "restarts", "restarts empty", "silent", "lost", "other weights", "slow", *LIES]),
    )
    def pod_fails(self, *, which: int, fault: str) -> None:
        """``restarts``: with the version of before; ``restarts empty``: with the version that is active now."""
        pods = [pod for pod in self.cluster.pods if pod.scheduled]
        pod = pods[which % len(pods)]
        if fault == "dies":
            self.cluster.pods.remove(pod)
        elif fault == "silent":
            pod.silent = True
        elif fault == "lost":
            pod.lost = True
        elif fault == "slow":
            pod.slow = True
        elif fault == "other weights":
            pod.salt = "!"
        elif fault in LIES:
            pod.lie = fault
        else:
            pod.crash(pod.version if fault == "restarts" else self.channel.active)
        self.blame()

    def blame(self) -> None:
        """The version that is rolled out now may be rejected for a fault that just happened."""
        if self.status.rollout.version is not None:
            self.blamed.add(self.status.rollout.version)

    @precondition(lambda self: any(pod.swapping for pod in self.cluster.pods))
    @rule(which=st.integers(0, 4))
    def swap_fails(self, *, which: int) -> None:
        under_way = [pod for pod in self.cluster.pods if pod.swapping]
        pod = under_way[which % len(under_way)]
        assert pod.asked is not None
        self.blamed.add(pod.asked.version)
        self.blame()
        pod.end_swap(works=False)

    @rule(pace=st.integers(0, 2))
    def pods_change_pace(self, *, pace: int) -> None:
        self.pace = pace

    @rule(flows=st.booleans())
    def traffic_changes(self, *, flows: bool) -> None:
        self.traffic = flows

    @rule()
    def faults_end(self) -> None:
        for pod in self.cluster.pods:
            pod.slow, pod.silent, pod.lost, pod.lie = False, False, False, ""
        self.all_go_on()

    def all_go_on(self) -> None:
        """Swaps end and engines come up after ``pace`` further reconciles, but never in slow pods."""
        for pod in self.cluster.pods:
            if not pod.scheduled:
                continue
            busy = pod.swapping or not pod.up
            pod.taken = pod.taken + 1 if busy else 0
            if not pod.slow:
                pod.return_to_service()
            if pod.slow or pod.taken <= self.pace:
                continue
            if pod.swapping:
                pod.end_swap(works=pod.lie != "swapped")
            pod.up = True
