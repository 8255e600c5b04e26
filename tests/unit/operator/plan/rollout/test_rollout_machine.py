"""Promises 1 and 3 of the rollout, whatever happens and in whatever order.

The machine drives the pure ``step`` in virtual time against simulated pods and a channel. Actions happen one by one, so
the operator may die between any two of them. Pods die, join, restart in the middle of a swap, stop answering, fail to
swap or come up with other weights. An autoscaler scales, also to zero. Traffic comes and goes, and some versions that
passed the gate are bad for it. The spec changes, people pin and abort, and evidence becomes outdated.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial

from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aurora_api.v1alpha1.status import RolloutPhase
from aurora_operator.plan.rollout.machine import Step
from aurora_operator.plan.rollout.roll import Roll
from aurora_operator.plan.rollout.world import AnalysisPolicy, RolloutPolicy, World
from aurora_protocol.agent_api import SwapPhase
from aurora_protocol.draft_records import ChannelReason
from tests.example_count import example_count
from tests.unit.operator.plan.rollout.simulated_pod import REASONS_AWAY, SimulatedPod
from tests.unit.operator.rolls import PAUSED, step

TICK = timedelta(seconds=2)
STEPS_TO_CONVERGE = 400
JUDGED = AnalysisPolicy(settle_seconds=2, interval_seconds=4, min_requests=50, failure_limit=0, watch_seconds=20)
UNJUDGED = AnalysisPolicy(consecutive_success_limit=0, watch_seconds=0)


class RolloutMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.status = Roll()
        self.channel, self.active = 1, 0
        self.channel_reason = ChannelReason.INITIAL
        self.pods: list[SimulatedPod] = []
        self.policy = RolloutPolicy(analysis=JUDGED, progress_deadline_seconds=60)
        self.rejected: set[int] = set()
        self.bad: set[int] = set()
        """Versions that passed the gate and whose tokens live traffic hardly accepts."""
        self.deadly: set[int] = set()
        """Versions that passed the gate and crash engines."""
        self.blamed: set[int] = set()
        """Versions that may be rejected: pods failed during their roll, or a person aborted them."""
        self.previous: int | None = None
        self.traffic = True
        self.pin: int | None = None
        self.abort: int | None = None
        self.unjudged: set[int] = set()
        """Versions that were admitted without judgement: by pin or by a policy without analysis."""
        self.evidence: dict[int, int] = {}
        self.newest = 0
        self.joined = 0
        self.observation_gap = True
        self.refused_by_epoch = 0
        self.end = JUDGED

    @initialize(count=st.integers(1, 4), end=st.sampled_from([JUDGED, JUDGED, UNJUDGED]))
    def pods_start(self, count: int, end: AnalysisPolicy) -> None:
        """``end`` is the policy when faults stop. Even without judgement, a version that crashes engines must go."""
        self.end = end
        for _ in range(count):
            self.join()
        self.all_go_on()

    # the outside -----------------------------------------------------------------------------------------------------

    @rule(kind=st.sampled_from(["good", "good", "bad", "deadly"]))
    def candidate_passes(self, *, kind: str) -> None:
        """A version passes the gate. Live traffic may be of another kind than the gate's prompts."""
        self.newest += 1
        self.evidence[self.newest] = self.active
        if kind != "good":
            (self.bad if kind == "bad" else self.deadly).add(self.newest)

    @rule(kind=st.sampled_from(["good", "good", "bad", "deadly"]), ticks=st.integers(1, 20))
    def a_roll_comes_far(self, *, kind: str, ticks: int) -> None:
        """Most faults matter in the middle of a roll."""
        self.candidate_passes(kind=kind)
        self.time_goes_on(ticks)

    @rule(flows=st.booleans())
    def traffic_changes(self, *, flows: bool) -> None:
        self.traffic = flows

    @rule(wish=st.sampled_from(["abort", "nothing"]))
    def person_decides(self, wish: str) -> None:
        version = self.status.version
        self.abort = version if wish == "abort" else None
        if version is not None and wish != "nothing":
            self.blamed.add(version)

    @rule(pin=st.none() | st.integers(0, 9))
    def person_pins(self, pin: int | None) -> None:
        self.pin = pin if pin is None or pin == 0 or pin in self.evidence else None
        for pod in self.pods:
            pod.late |= not pod.ready
        if self.pin is not None:
            self.unjudged.add(self.pin)

    @precondition(lambda self: len(self.pods) < 5)
    @rule(slow=st.booleans(), draft=st.booleans())
    def join(self, *, slow: bool = False, draft: bool = True) -> None:
        """A pod has chosen its version, or found none, and is not up yet. It may come up after the next promotion."""
        self.joined += 1
        version = self.active if draft else None
        self.pods.append(SimulatedPod(f"pod-{self.joined:02d}", version=version, ready=False, slow=slow))

    @rule(
        which=st.integers(0, 4),
        fault=st.sampled_from(["dies", "restarts", "unreachable", "other weights", "slow"]),
    )
    def pod_fails(self, which: int, fault: str) -> None:
        if not self.pods:
            return
        pod = self.pods[which % len(self.pods)]
        if fault in ("restarts", "other weights"):
            self.blame()
        if fault == "dies":
            self.pods.remove(pod)
        elif fault == "unreachable":
            pod.reachable = False
        elif fault == "slow":
            pod.slow = True
        elif fault == "other weights":
            pod.salt = "!"
        else:  # also in the middle of a swap, with the draft that ``current`` points at
            pod.crash(pod.version)

    @rule(before=st.integers(3, 20), ticks=st.sampled_from([1, 35, 50]), why=st.sampled_from(REASONS_AWAY))
    def pod_stays_away(self, before: int, ticks: int, why: str) -> None:
        """The engine of a pod with a new version loads for a while, or its node is lost or restarts."""
        self.a_roll_comes_far(kind="good", ticks=before)
        having = [pod for pod in self.pods if pod.version == self.status.version and pod.ready]
        for pod in having[:1]:
            if not why:
                self.blame()
            pod.crash(pod.version, with_agent=bool(why))
            pod.slow, pod.node_lost = True, why == "node"
            self.time_goes_on(ticks)

    @rule(replicas=st.integers(0, 5), first=st.integers(0, 4), slow=st.booleans())
    def autoscaler_scales(self, replicas: int, first: int, *, slow: bool) -> None:
        """Kubernetes deletes pods that are not ready first. No version may be rejected for that, even at zero pods."""
        turned = sorted([*self.pods[first:], *self.pods[:first]], key=lambda pod: pod.ready)
        leaving = {pod.name for pod in turned[: max(len(self.pods) - replicas, 0)]}
        self.pods = [pod for pod in self.pods if pod.name not in leaving]
        while len(self.pods) < replicas:
            self.join(slow=slow)

    def blame(self) -> None:
        if self.status.version is not None:
            self.blamed.add(self.status.version)

    @rule(which=st.integers(0, 4), transient=st.booleans())
    def swap_fails(self, which: int, *, transient: bool) -> None:
        """A swap fails because of the draft, or transiently, which blames nobody."""
        under_way = [pod for pod in self.pods if pod.phase is SwapPhase.SWAPPING]
        if not under_way:
            return
        pod = under_way[which % len(under_way)]
        if not transient and pod.asked is not None:
            self.blamed.add(pod.asked)
            self.blame()
        self.end_swap(pod, works=False)
        pod.transient = transient

    @rule()
    def slow_pods_come_up(self) -> None:
        for pod in self.pods:
            pod.slow = pod.node_lost = False
        self.all_go_on()

    def all_go_on(self) -> None:
        """Swaps end, engines come up and agents answer again, in all pods but the slow ones."""
        for pod in self.pods:
            if pod.slow or pod.node_lost:
                continue
            if pod.phase is SwapPhase.SWAPPING:
                self.end_swap(pod, works=True)
            pod.ready = pod.reachable = True

    def end_swap(self, pod: SimulatedPod, *, works: bool) -> None:
        assert pod.asked is not None
        pod.late = False
        pod.phase = SwapPhase.IDLE if works else SwapPhase.FAILED
        pod.failed_to_return = not works and (pod.failed_to_return or pod.asked == self.active)
        if works:
            pod.version = pod.asked

    @rule(
        paused=st.booleans(),
        canary=st.integers(1, 3),
        analysis=st.sampled_from([JUDGED, UNJUDGED]),
        swapping=st.integers(1, 3),
        unavailable=st.integers(0, 2),
    )
    def spec_changes(
        self, *, paused: bool, canary: int, analysis: AnalysisPolicy, swapping: int, unavailable: int
    ) -> None:
        self.policy = RolloutPolicy(
            paused=paused,
            canary=canary,
            analysis=analysis,
            max_swapping=swapping,
            max_not_ready=unavailable,
            progress_deadline_seconds=60,
        )

    @rule()
    def minutes_pass(self) -> None:
        """Nobody observes meanwhile, or only the clock was set. The operator detects both (``ObservedTime``)."""
        self.now += timedelta(seconds=61)
        self.observation_gap = True

    @rule(seconds=st.sampled_from([-3700, -30]))
    def clock_is_set_back(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)
        self.observation_gap |= seconds < -60

    @rule()
    def evidence_is_withdrawn(self) -> None:
        """Somebody else changed the active version, so the evidence proves nothing any more."""
        self.evidence = dict.fromkeys(self.evidence, -1)

    @rule()
    def status_is_lost(self) -> None:
        self.status = Roll()

    # the operator ----------------------------------------------------------------------------------------------------

    def world(self) -> World:
        promotable = frozenset(v for v, against in self.evidence.items() if against == self.active) - self.rejected
        offers = [v for v in promotable if v > self.active]
        return World(
            now=self.now,
            active=self.active,
            previous=self.previous,
            rejected=frozenset(self.rejected),
            channel_reason=self.channel_reason,
            channel_message="rejected before",
            epoch=self.channel,
            pods=tuple(pod.view() for pod in self.pods),
            policy=self.policy,
            paused=PAUSED if self.policy.paused else "",
            next_version=max(offers, default=None),
            newest_version=max(self.evidence.keys() - self.rejected, default=0),
            promotable=promotable,
            pinned_version=self.pin,
            pin_set=self.pin is not None,
            abort=self.abort,
            observation_gap=self.observation_gap,
            refused_by_epoch=self.refused_by_epoch,
        )

    @rule(ticks=st.integers(1, 6))
    def time_goes_on(self, ticks: int) -> None:
        for _ in range(ticks):
            self.tick()

    def tick(self) -> None:
        self.operator_acts(dies_after=100)
        self.all_go_on()
        for pod in self.pods:
            if pod.ready and pod.version in self.deadly and self.traffic:
                pod.crash(self.active)
            elif self.traffic:
                pod.serve(1.1 if pod.version in self.bad else 2.0)
        self.now += TICK

    @rule(dies_after=st.integers(0, 3))
    def operator_acts(self, dies_after: int) -> None:
        """Observe, plan and act. The process dies after ``dies_after`` actions, when there are more."""
        world = self.world()
        made = step(world, self.status)
        faulty = any(pod.salt for pod in self.pods)
        for version in (self.status.version, made.rollout.version):
            if version is None:
                continue
            if self.policy.analysis is UNJUDGED:
                self.unjudged.add(version)
            if faulty:
                self.blamed.add(version)
        self.check_step(world, made)
        event(f"{self.status.phase} -> {made.rollout.phase}")
        if made.event:
            event(made.event)
        self.observation_gap, self.refused_by_epoch = False, 0
        actions: list[Callable[[], None]] = [lambda: self.advance(made), lambda: self.persist(made)]
        for number, action in enumerate([*actions, *self.swaps(made)]):
            if number == dies_after:
                self.observation_gap = True
                return
            action()

    def check_step(self, world: World, made: Step) -> None:
        for version in made.swaps.values():
            assert version == world.active or (version in world.promotable and version == made.rollout.version)
        if made.advance is None:
            known = made.event != "RolloutFailed" or made.rollout.version in world.rejected
            assert known, "a rejection is told that the channel does not know"
            return
        active, reason = made.advance.active, made.advance.reason
        if reason is ChannelReason.PROMOTED:
            assert active in world.promotable
            assert {pod.version for pod in self.pods if pod.ready} == {active}
            assert made.advance.reject is None
        if reason in (ChannelReason.ROLLED_BACK, ChannelReason.REFUSED):
            assert active == (world.previous if reason is ChannelReason.ROLLED_BACK else world.active)
            assert made.advance.reject not in (None, active)
            to_blame = self.blamed | self.bad | self.deadly
            assert made.advance.reject in to_blame, f"nothing but time passed: {made.rollout.message}"

    def advance(self, made: Step) -> None:
        if made.advance is None:
            return
        self.channel_reason = made.advance.reason
        back = self.channel_reason is ChannelReason.ROLLED_BACK
        if made.advance.active != self.active:
            self.previous = None if back else self.active
        self.channel, self.active = self.channel + 1, made.advance.active
        if made.advance.reject is not None:
            self.rejected.add(made.advance.reject)

    def persist(self, made: Step) -> None:
        if made.rollout.epoch < self.status.epoch:
            raise AssertionError("the fencing number went back")
        self.status = made.rollout
        if made.event == "RolloutStarted":  # also beside a pod whose engine restarts with an older version
            for pod in self.pods:
                pod.late |= not pod.ready

    def swaps(self, made: Step) -> list[Callable[[], None]]:
        def ask(name: str, version: int) -> None:
            for pod in self.pods:
                reached = pod.reachable and pod.ready and not pod.node_lost
                if pod.name == name and reached and not pod.swap(version, made.rollout.epoch):
                    self.refused_by_epoch = max(self.refused_by_epoch, pod.epoch)

        return [partial(ask, name, version) for name, version in made.swaps.items()]

    # the promises ----------------------------------------------------------------------------------------------------

    @invariant()
    def only_passed_versions_serve(self) -> None:
        """No pod serves, or swaps to, a version that never passed."""
        for pod in self.pods:
            for version in (pod.version, pod.asked):
                assert version in (None, 0) or version in self.evidence

    @invariant()
    def at_most_two_versions(self) -> None:
        """Excepted are pods that come up late: they return at once. And a pin waits for no pod that cannot swap."""
        brake = self.channel_reason is ChannelReason.PINNED
        stuck = {pod.name for pod in self.pods if brake and pod.failed_to_return}
        pods = [pod for pod in self.pods if pod.ready and not pod.late and pod.name not in stuck]
        assert len({pod.version for pod in pods} - {None}) <= 2

    def teardown(self) -> None:
        """Once faults stop, all pods serve the right version and the rollout is idle."""
        self.policy = RolloutPolicy(analysis=self.end, progress_deadline_seconds=60)
        self.traffic, self.abort = True, None
        if not self.pods:
            self.join()
        for pod in self.pods:
            pod.salt, pod.slow, pod.node_lost = "", False, False
        for _ in range(STEPS_TO_CONVERGE):
            self.tick()
            self.only_passed_versions_serve()
            world = self.world()
            if self.active in self.deadly & self.unjudged:
                return  # a person has to remove a version admitted without judgement: no pod stays up to compare with
            at_rest = all(pod.version == self.active and pod.phase is not SwapPhase.SWAPPING for pod in self.pods)
            right = self.pin in (None, self.active)
            decided = world.next_version is None or self.pin is not None
            if self.status.phase is RolloutPhase.IDLE and decided and at_rest and right:
                wrong = self.bad | self.deadly
                # Once people admitted a bad version, the next version need only be as good.
                assert self.active not in wrong or wrong & self.unjudged, "live traffic did not reject the version"
                return
        raise AssertionError(f"still {self.status} with {self.pods}, active {self.active}")


RolloutMachine.TestCase.settings = settings(
    max_examples=example_count(300), stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestRollout = RolloutMachine.TestCase
