"""The promises that every decision of the plan, and every moment between two decisions, must keep in a simulated world.

Invariant: a decision is checked against the simulated world, and against the observation that the operator decided on.
It is never checked against the plan's own statements.
"""

from __future__ import annotations

from collections import Counter

from hypothesis import event
from hypothesis.stateful import RuleBasedStateMachine, invariant

from aurora_api.v1alpha1.status import MAX_HISTORY, MAX_REJECTED, RolloutPhase, SpeculatorStatus
from aurora_api.v1alpha1.validation import MeasureOn
from aurora_operator.observe.observed import Observed
from aurora_operator.plan import Plan, Swap
from aurora_operator.plan.rollout.world import RolloutPolicy
from aurora_protocol.agent_api import SwapPhase
from aurora_protocol.draft_records import INITIAL_VERSION, Channel, ChannelReason
from aurora_protocol.evidence_records import VerdictKind
from aurora_store import Keys
from tests.unit.operator.simulation import SimulatedCluster, SimulatedStore
from tests.unit.operator.worlds import job_settings

PROMPTS_NEEDED = 16
"""Four times the highest of ``concurrencies``, by default."""
FORWARD = frozenset({RolloutPhase.JUDGING, RolloutPhase.ROLLING})


class Promises(RuleBasedStateMachine):
    """A store, a cluster, and the facts that allow a decision. A subclass drives all three."""

    def __init__(self) -> None:
        super().__init__()
        self.store, self.cluster = SimulatedStore(), SimulatedCluster()
        self.kinds: dict[int, str] = {INITIAL_VERSION: "good"}
        """How a version does on live traffic, whatever the gate says.

        ``good``, ``bad``, ``deadly`` (crashes engines) or ``fading`` (good until it is active).
        """
        self.blamed: set[int] = set()
        """Versions that may be rejected: a fault was observed, or a user aborted them."""
        self.unjudged: set[int] = set()
        """Versions that were admitted without judgement: by pin, by promotion, or by a policy without analysis."""
        self.stale = False
        """Whether a pod accepted a request of an operator that did not know the newest decision yet."""
        self.lent = Counter[str]()
        """Measurement -> how often a replica was withdrawn for it, since faults stopped."""

    @property
    def status(self) -> SpeculatorStatus:
        return SpeculatorStatus.model_validate_json(self.cluster.status)

    @property
    def channel(self) -> Channel:
        channel = self.store.channel
        assert channel is not None, "the channel exists before the first rule runs"
        return channel

    def forgive_late(self) -> None:
        """Pods that are down or silent now may miss the next decision."""
        for pod in self.cluster.pods:
            pod.late |= not pod.up or pod.silent or pod.lost

    def check_plan(self, seen: Observed, made: Plan) -> None:
        before, channel = seen.status.rollout, seen.store.channel
        after = before if made.status is None else made.status.rollout
        event(f"{before.phase} -> {after.phase}")
        judged = bool(seen.spec.rollout.analysis.min_requests)
        faulty, lied = (any(getattr(pod, fault) for pod in self.cluster.pods) for fault in ("faulty", "lie"))
        for version in {before.version, after.version} - {None}:
            assert version is not None
            self.unjudged |= set() if judged and not lied else {version}
            self.blamed |= {version} if faulty else set()
        assert after.epoch >= before.epoch, "the fencing number went back"
        if "RolloutStarted" in made.decisions:  # also beside a pod whose engine restarts with an older version
            self.forgive_late()
        if made.status is not None:
            assert len(made.status.history) <= MAX_HISTORY
            assert len(made.status.rejected) <= MAX_REJECTED + 3
            for version in set(made.status.rejected) - set(seen.status.rejected):
                self.check_rejection(version, after.message)
        if channel is None:
            assert (made.swaps, made.job) == ((), None), "no decision without the store"
            return
        self.check_swaps(seen, made, after.phase)
        self.check_loans(seen, made, after.phase)
        aborts = seen.abort is not None  # the reconcile may decide about nothing else
        held_out = seen.store.trainer.held_out_requests if seen.store.trainer else None
        lacks_prompts = held_out is not None and held_out < PROMPTS_NEEDED and not aborts
        assert not (made.job is not None and lacks_prompts), "a measurement began that could not be made"
        if made.advance is not None:
            self.check_advance(seen, made.advance)

    def check_rejection(self, version: int, message: str) -> None:
        wrong = {version for version, kind in self.kinds.items() if kind != "good"}
        known = set(self.channel.rejected)
        assert version in self.blamed | wrong | known, f"version {version}: nothing but time passed: {message}"

    def check_swaps(self, seen: Observed, made: Plan, phase: RolloutPhase) -> None:
        channel, rules = seen.store.channel, RolloutPolicy.of(seen.spec.rollout)
        assert channel is not None, "the caller has seen it"
        asked = {swap.request.version for swap in made.swaps}
        rejected = {*channel.rejected, *seen.status.rejected}
        forward = asked - {channel.active}
        assert len(asked) <= 1
        for version in forward:  # promise 1
            assert seen.store.promotion_evidence(version), "the version has no evidence against the active one"
            assert version not in rejected, "rejected before"
            assert phase in FORWARD
        if forward:  # promise 2
            agents = [pod.agent for pod in seen.pods]
            busy = sum(a is not None and a.swap.phase in (SwapPhase.STAGING, SwapPhase.SWAPPING) for a in agents)
            down = sum(not view.ready or view.agent is None for view in seen.pods if view.scheduled)
            assert len(made.swaps) + busy <= rules.max_swapping
            assert down <= rules.max_not_ready

    def check_loans(self, seen: Observed, made: Plan, phase: RolloutPhase) -> None:
        """Promise 2: capacity is lent only where it can be spared, one pod at a time, and never during a rollout."""
        channel, away = seen.store.channel, {view.name for view in seen.pods if view.measurement is not None}
        assert channel is not None, "the caller has seen it"
        assert not away & {swap.pod for swap in made.swaps}
        if seen.status.rollout.phase is RolloutPhase.IDLE and phase is RolloutPhase.JUDGING:  # promise 3
            assert not away, "the pod would return with a former version during a rollout"
            served = {view.agent.version for view in seen.pods if view.ready and view.agent}
            assert served == {channel.active}, "a third version would serve during a rollout"
            offered = made.status.rollout.version if made.status is not None else None
            assert offered is not None
            assert offered not in {*channel.rejected, *seen.status.rejected}, "rejected before"
            assert seen.store.promotion_evidence(offered), "promise 1"
        if made.job is None:
            return
        assert (seen.status.rollout.phase, phase) == (RolloutPhase.IDLE, RolloutPhase.IDLE)
        replica = job_settings(made.job).replica
        assert (replica is not None) == (seen.spec.validation.measure_on is MeasureOn.REPLICA)
        if replica is not None:
            staying = [view for view in seen.pods if view.scheduled and view.name != replica.pod]
            assert staying
            assert not away
            assert all(view.ready and view.agent and view.agent.version == channel.active for view in staying)

    def check_advance(self, seen: Observed, channel: Channel) -> None:
        former = seen.store.channel
        assert former is not None, "the first record has no predecessor"
        assert channel.epoch == former.epoch + 1
        assert channel.active in self.store.registrations
        assert set(former.rejected) <= set(channel.rejected)
        for version in set(channel.rejected) - set(former.rejected):
            assert version != channel.active
            self.check_rejection(version, channel.message)
        if channel.reason is ChannelReason.PROMOTED:  # promise 4
            proofs = {
                Keys.evidence(version, attempt): proof for (version, attempt), proof in self.store.evidence.items()
            }
            assert channel.evidence is not None
            proof = proofs[channel.evidence]
            assert (proof.version, proof.verdict.kind) == (channel.active, VerdictKind.PASS)
            assert proof.active_version == former.active
            assert channel.active not in former.rejected
            answering = [view.agent.version if view.agent else None for view in seen.pods if view.ready]
            assert set(answering) == {channel.active}, "a pod that may answer requests does not confirm the version"
        elif channel.reason is ChannelReason.PINNED:
            assert channel.active == seen.spec.rollout.pin
            assert self.store.passed(channel.active)
        else:
            back = channel.reason is ChannelReason.ROLLED_BACK
            assert channel.active == (former.previous if back else former.active)

    def agent_accepted(self, asked: Swap, seen: Observed) -> None:
        """An agent accepted a request, possibly long after the observation ``seen`` that led to it."""
        version, known = asked.request.version, seen.store.channel
        assert self.store.passed(version), "never passed"
        assert known is not None
        if known.epoch == self.channel.epoch:
            assert version == known.active or version not in known.rejected
        current = self.status.rollout
        self.stale |= known.epoch < self.channel.epoch or asked.request.epoch < current.epoch

    @invariant()
    def only_passed_versions_serve(self) -> None:
        """No pod serves a version that never passed the gate."""
        for pod in self.cluster.pods:
            assert pod.version is None or self.store.passed(pod.version)

    @invariant()
    def at_most_two_versions(self) -> None:
        """Excepted are pods that start late, and the time until an outdated operator's request is corrected."""
        pods = [pod for pod in self.cluster.pods if pod.serves and not pod.late and not pod.faulty]
        versions = {pod.version for pod in pods} - {None}  # without a draft, nothing is proposed from one
        self.stale &= len(versions) > 1
        assert len(versions) <= 2 or self.stale

    @invariant()
    def the_channel_names_what_is_registered(self) -> None:
        assert self.channel.active in self.store.registrations
        assert len(self.channel.rejected) <= MAX_REJECTED
