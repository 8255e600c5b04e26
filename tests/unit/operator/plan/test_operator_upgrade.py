"""After an upgrade of the operator, pods keep their template until it is their speculator's turn."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from aurora_api.v1alpha1.conditions import ConditionType
from aurora_api.v1alpha1.serving import DEFAULT_MAX_RUNNING_REQUESTS
from aurora_api.v1alpha1.status import RolloutPhase, RolloutStatus, SpeculatorStatus
from aurora_operator.children.inference_deployment import RESTART_ANNOTATION, START_LIMIT, choice_digest
from aurora_operator.fleet import START_SECONDS
from aurora_operator.observe.observed import FleetView, StoreView, WorkloadView
from aurora_operator.plan import plan
from aurora_operator.plan.operator_upgrade import SURGE_WAIT, UpgradeStage, decide_upgrade
from tests.example_count import example_count
from tests.unit.operator.upgrades import MAX_UNKNOWN_SECONDS, Operator, Speculator, config, running, started
from tests.unit.operator.worlds import NOW, OWNER, evidence, pod, spec, store, waiting_pod

OTHERS_RESTART = FleetView(restarting=1)


def test_an_upgrade_restarts_one_speculator_after_the_other() -> None:
    first, second = fleet = running("a", "b")
    operator = started(config(2), *fleet)
    operator.look(*fleet, *fleet)
    assert (first.restarts, second.restarts) == (1, 0)
    operator.look(*fleet)
    assert second.restarts == 0, "the first is not whole yet"
    first.become_whole()
    operator.look(*fleet)
    assert (first.restarts, second.restarts) == (1, 1)
    second.become_whole()
    operator.look(*fleet)
    assert {s.agent_image for s in fleet} == {"agent:2"}
    assert all(s.live is not None and RESTART_ANNOTATION not in s.live["metadata"]["annotations"] for s in fleet)


@pytest.mark.parametrize("change", [{"replicas": 5}, {"strategy": {"maxSurge": 2}}])
def test_a_change_that_concerns_no_pod_is_applied_while_the_template_is_kept(change: dict[str, Any]) -> None:
    (speculator,) = running("a")
    speculator.change(**change)
    speculator.apply(decide_upgrade(replace(speculator.observe(), fleet=OTHERS_RESTART), config(2), NOW))
    assert speculator.restarts == 0
    assert speculator.live is not None
    assert speculator.live["spec"]["replicas"] == speculator.spec.serving.replicas
    assert (
        speculator.live["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == speculator.spec.serving.strategy.max_surge
    )
    assert set(speculator.live["spec"]["strategy"]["rollingUpdate"]) == {"maxSurge", "maxUnavailable"}


def test_pods_whose_digests_are_gone_keep_the_template_that_they_have() -> None:
    (speculator,) = running("a")
    assert speculator.live is not None
    speculator.live["metadata"]["annotations"] = {}
    speculator.live["spec"]["template"]["spec"]["dnsPolicy"] = "ClusterFirst"  # a default of the API server
    held = decide_upgrade(replace(speculator.observe(), fleet=OTHERS_RESTART), config(2), NOW)
    assert held.stage is UpgradeStage.WAITING
    speculator.apply(held)
    assert (speculator.restarts, speculator.agent_image) == (0, "agent:1")
    speculator.change(extraArgs=["--tp", "2"])
    assert (
        decide_upgrade(replace(speculator.observe(), fleet=OTHERS_RESTART), config(2), NOW).stage
        is UpgradeStage.CURRENT
    )


def test_an_administrator_may_forbid_all_restarts() -> None:
    (speculator,) = running("a")
    operator = started(config(2, max_concurrent=0), speculator)
    operator.look(speculator, speculator)
    assert speculator.restarts == 0
    speculator.change(image="runtime:9")
    operator.look(speculator)
    assert speculator.agent_image == "agent:2", "the speculator's own change brings the new template"


@pytest.mark.parametrize(("max_failed", "restarts"), [(0, [1, 0, 0]), (1, [1, 1, 0]), (2, [1, 1, 1])])
def test_failed_restarts_count_against_a_budget(max_failed: int, restarts: list[int]) -> None:
    fleet = running("a", "b", "c")
    operator = started(config(2, max_failed=max_failed), *fleet)
    for speculator in fleet:
        operator.look(speculator)
        if speculator.restarts:
            speculator.miss_deadline()
            assert operator.decide(speculator).stage is UpgradeStage.FAILED
    assert [speculator.restarts for speculator in fleet] == restarts


def test_a_later_version_repairs_a_failed_one_at_once() -> None:
    first, _ = fleet = running("a", "b")
    operator = started(config(2, max_failed=0), first)
    operator.look(first)
    first.miss_deadline()
    rolled_back = started(config(1, max_failed=0), *fleet)
    rolled_back.look(first)
    assert first.agent_image == "agent:1"
    first.become_whole()
    rolled_back.look(*fleet)
    assert {rolled_back.decide(one).stage for one in fleet} == {UpgradeStage.CURRENT}


def test_a_template_that_the_api_server_refuses_has_failed() -> None:
    first, second = fleet = running("a", "b")
    operator = started(config(2, max_failed=0), *fleet)
    refused = ("Deployment a: denied by an admission webhook",)
    operator.decide(first)
    assert operator.decide(first, apply_errors=refused).stage is UpgradeStage.FAILED
    operator.look(second)
    assert second.restarts == 0


def restarting_since_now() -> tuple[Speculator, Speculator, Operator, list[float]]:
    """Two speculators, of which the first has just begun its restart, and the operator with its clock."""
    first, second = fleet = running("a", "b")
    now = [0.0]
    operator = Operator(config(2, max_failed=0), fleet, lambda: now[0])
    operator.look(*fleet)
    now[0] = START_SECONDS
    operator.look(first)
    assert first.restarts == 1
    return first, second, operator, now


def test_a_restart_without_progress_fails_after_the_time_that_a_start_may_take_whatever_the_deployment_says() -> None:
    first, second, operator, now = restarting_since_now()
    first.be_paused()
    now[0] += START_LIMIT.total_seconds()
    operator.look(*[first, second] * 2)
    assert operator.decide(first).stage is UpgradeStage.RESTARTING
    now[0] += 1
    again = Operator(config(2), [first], lambda: now[0])
    assert again.decide(first).stage is UpgradeStage.FAILED, "a new process knows it too"
    operator.look(first)
    assert operator.decide(second).stage is UpgradeStage.WAITING
    repaired = Operator(config(3), [first], lambda: now[0])
    repaired.look(first)
    first.be_paused()
    assert repaired.decide(first).stage is UpgradeStage.RESTARTING, "a later template has the whole time again"


def test_a_restart_pod_by_pod_has_its_whole_time_after_each_pod() -> None:
    first, _, operator, now = restarting_since_now()
    first.be_paused()
    assert first.live is not None
    now[0] += START_LIMIT.total_seconds()
    first.live["status"]["conditions"][0]["lastUpdateTime"] = (NOW + timedelta(seconds=now[0])).isoformat()
    now[0] += START_LIMIT.total_seconds()
    assert operator.decide(first).stage is UpgradeStage.RESTARTING
    now[0] += 1
    assert operator.decide(first).stage is UpgradeStage.FAILED


def test_pods_are_replaced_in_place_once_the_cluster_has_had_no_room_for_another_for_a_while() -> None:
    first, second, operator, now = restarting_since_now()
    surge = replace(waiting_pod("surge"), created=NOW + timedelta(seconds=now[0]))
    pods, restarts = (pod("old-1", 0), pod("old-2", 0), surge), WorkloadView(current=False, replicas=3, ready=2)
    now[0] += SURGE_WAIT.total_seconds()
    assert not operator.decide(first, pods=pods, deployment=restarts).in_place, "a cluster autoscaler may bring a node"
    now[0] += 1
    made = operator.decide(first, pods=pods, deployment=restarts)
    assert (made.in_place, made.stage) == (True, UpgradeStage.RESTARTING)
    first.apply(made)
    assert first.live is not None
    assert first.live["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    left = (pod("old-2", 0), pod("surge", 0))
    assert operator.decide(first, pods=left, deployment=restarts).in_place, "the other pod follows at once"
    first.become_whole()
    assert not operator.decide(first).in_place
    first.change(strategy={"maxSurge": 0, "maxUnavailable": 2})
    first.apply(operator.decide(first))
    assert not operator.decide(first, deployment=restarts).in_place, "the user's own strategy stays"
    assert second.restarts == 0


def test_the_only_pod_of_a_speculator_is_not_taken_away_and_others_follow() -> None:
    first, second, operator, now = restarting_since_now()
    first.change(replicas=1)
    surge = replace(waiting_pod("surge"), created=NOW)
    now[0] += SURGE_WAIT.total_seconds() + 1
    made = operator.decide(first, pods=(pod("old-1", 0), surge))
    assert (made.in_place, made.stage) == (False, UpgradeStage.CURRENT)
    operator.look(second)
    assert second.restarts == 1


def test_one_whose_spec_cannot_be_used_or_that_is_being_deleted_gives_its_turn_back() -> None:
    first, second, operator, _ = restarting_since_now()
    operator.look(second)
    assert second.restarts == 0
    operator.find_unusable(first)
    operator.look(second)
    assert second.restarts == 1


def test_a_speculator_with_a_broken_pod_takes_no_turn() -> None:
    broken, whole = fleet = running("a", "b")
    broken.lose_a_pod()
    operator = started(config(2), *fleet)
    operator.look(*fleet)
    assert (broken.restarts, whole.restarts) == (0, 1)
    for speculator in fleet:
        speculator.become_whole()
    operator.look(whole, broken)
    assert broken.restarts == 1


def test_pods_serve_on_while_the_store_cannot_be_read() -> None:
    """A pod that starts needs its draft from the store, and keys that the operator makes once it reads the channel."""
    (speculator,) = running("a")
    seen = replace(speculator.observe(), store=StoreView(reason="SecretForbidden", error="not in secretNames"))
    assert decide_upgrade(seen, config(2), NOW).stage is UpgradeStage.WAITING
    assert decide_upgrade(speculator.observe(), config(2), NOW).stage is UpgradeStage.RESTARTING


@pytest.mark.parametrize("phase", RolloutPhase)
def test_no_turn_comes_while_a_version_is_judged(phase: RolloutPhase) -> None:
    """Live traffic would compare pods of two runtime images."""
    (speculator,) = running("a")
    seen = replace(speculator.observe(), status=SpeculatorStatus(rollout=RolloutStatus(phase=phase, version=1)))
    free = phase is RolloutPhase.IDLE
    expected = UpgradeStage.RESTARTING if free else UpgradeStage.WAITING
    assert decide_upgrade(seen, config(2), NOW).stage is expected


@pytest.mark.parametrize(("passed", "stage"), [(True, UpgradeStage.WAITING), (False, UpgradeStage.RESTARTING)])
def test_a_roll_that_begins_now_comes_before_the_turn(*, passed: bool, stage: UpgradeStage) -> None:
    (speculator,) = running("a")
    seen = replace(speculator.observe(), store=store(0, 1, evidence=(evidence(1),) if passed else ()))
    made = plan(seen, config(2), NOW)
    assert made.upgrade is not None
    assert made.upgrade.stage is stage


def test_no_roll_begins_before_all_pods_have_restarted_with_the_upgraded_template() -> None:
    (speculator,) = running("a")
    started(config(2), speculator).look(speculator)
    passed = store(0, 1, evidence=(evidence(1),))
    made = plan(replace(speculator.observe(), store=passed), config(2), NOW)
    assert made.status is not None
    assert made.status.rollout.phase is RolloutPhase.IDLE
    assert "the pods restart with the upgraded" in made.status.rollout.waiting
    speculator.become_whole()
    after = plan(replace(speculator.observe(), store=passed, status=made.status), config(2), NOW).status
    assert after is not None
    assert after.rollout.phase is RolloutPhase.JUDGING


def test_a_speculator_without_pods_waits_for_nobody() -> None:
    (speculator,) = running("a")
    speculator.change(replicas=0)
    seen = replace(speculator.observe(), pods=(), fleet=OTHERS_RESTART)
    assert decide_upgrade(seen, config(2), NOW).stage is UpgradeStage.CURRENT


def test_no_turn_is_given_before_every_speculator_was_observed() -> None:
    fleet = running("a", "b")
    now = [0.0]
    operator = Operator(config(2), fleet, lambda: now[0])
    now[0] = START_SECONDS
    operator.look(fleet[0], fleet[0])
    assert fleet[0].restarts == 0
    now[0] = MAX_UNKNOWN_SECONDS
    operator.look(fleet[0])
    assert fleet[0].restarts == 1, "one that cannot be observed does not hold up the order for ever"


def test_a_field_with_its_default_is_no_choice_of_the_user() -> None:
    """So a field that another version of the operator adds restarts no pod."""
    assert choice_digest(OWNER, spec(serving={"maxRunningRequests": DEFAULT_MAX_RUNNING_REQUESTS})) == choice_digest(
        OWNER, spec()
    )
    assert choice_digest(OWNER, spec(serving={"maxRunningRequests": 9})) != choice_digest(OWNER, spec())


def test_the_conditions_tell_of_the_upgrade() -> None:
    (speculator,) = running("a")
    seen = speculator.observe()
    assert _reason(plan(seen, config(1), NOW), ConditionType.READY) == "Serving"
    waiting = plan(replace(seen, fleet=OTHERS_RESTART), config(2), NOW)
    for kind in (ConditionType.READY, ConditionType.SERVING_READY):
        assert _reason(waiting, kind) == "WaitingForTurn"
    restarting = plan(replace(seen, status=_status(waiting)), config(2), NOW)
    assert restarting.upgrade is not None
    speculator.apply(restarting.upgrade)
    speculator.miss_deadline()
    failed = plan(replace(speculator.observe(), status=_status(restarting)), config(2), NOW)
    assert _reason(failed, ConditionType.STALLED) == "UpgradeFailed"
    assert ("UpgradeFailed", True) in [(note.reason, note.warning) for note in failed.notes]
    speculator.become_whole()
    done = plan(replace(speculator.observe(), status=_status(failed)), config(2), NOW)
    assert _reason(done, ConditionType.STALLED) == "AsExpected"


def _status(made: Any) -> Any:
    assert made.status is not None
    return made.status


def _reason(made: Any, kind: ConditionType) -> str:
    return str(next(c.reason for c in _status(made).conditions if c.type is kind))


class UpgradeMachine(RuleBasedStateMachine):
    """Operators of several versions look at a fleet, in any order, and die between a decision and its write."""

    @initialize(size=st.integers(1, 5), max_concurrent=st.integers(1, 3))
    def start(self, size: int, max_concurrent: int) -> None:
        self.now, self.version, self.max_concurrent = 0.0, 1, max_concurrent
        self.fleet = [Speculator(f"s{number}") for number in range(size)]
        self.start_operator(1)
        self.operator.look(*self.fleet)
        for speculator in self.fleet:
            speculator.become_whole()
            speculator.restarts = 0

    @rule(version=st.integers(1, 3))
    def start_operator(self, version: int) -> None:
        """The operator restarts, perhaps with another version."""
        self.version = version
        self.operator = Operator(config(version, self.max_concurrent), self.fleet, lambda: self.now)

    @rule(seconds=st.sampled_from([1.0, START_SECONDS]))
    def time_goes_on(self, seconds: float) -> None:
        self.now += seconds

    @rule(which=st.integers(0, 4), applied=st.booleans())
    def look(self, which: int, applied: bool) -> None:
        """Without ``applied`` the write fails, and the next look decides again."""
        speculator = self.fleet[which % len(self.fleet)]
        if speculator.unusable:
            self.operator.find_unusable(speculator)
            return
        if speculator.spec_changed:
            return
        made = self.operator.decide(speculator)
        if applied:
            speculator.apply(made)

    @rule(which=st.integers(0, 4))
    def pods_become_ready(self, which: int) -> None:
        self.fleet[which % len(self.fleet)].become_whole()

    @rule(which=st.integers(0, 4))
    def a_speculator_becomes_unusable(self, which: int) -> None:
        """Its user breaks the spec or deletes it while its store is away. Its pods may never become ready."""
        self.operator.find_unusable(self.fleet[which % len(self.fleet)])

    @rule(which=st.integers(0, 4))
    def a_spec_is_corrected(self, which: int) -> None:
        self.fleet[which % len(self.fleet)].unusable = False

    @rule(which=st.integers(0, 4))
    def a_restart_fails(self, which: int) -> None:
        """It gives its place back, and may still get through later."""
        speculator = self.fleet[which % len(self.fleet)]
        if speculator.upgrading and not speculator.unusable and not speculator.spec_changed:
            speculator.miss_deadline()
            speculator.gave_back = True
            made = self.operator.decide(speculator)
            assert made.stage in (UpgradeStage.FAILED, UpgradeStage.RESTARTING), "another version begins anew"
            speculator.apply(made)
            speculator.gave_back = made.stage is UpgradeStage.FAILED

    @rule(which=st.integers(0, 4))
    def a_pod_is_lost(self, which: int) -> None:
        speculator = self.fleet[which % len(self.fleet)]
        if not speculator.upgrading:
            speculator.lose_a_pod()

    @rule(which=st.integers(0, 4), steps=st.integers(1, 9))
    def the_user_changes_the_spec(self, which: int, steps: int) -> None:
        """A change by the user passes at once, whatever the order."""
        speculator = self.fleet[which % len(self.fleet)]
        before = speculator.spec
        if speculator.unusable:
            return
        speculator.change(extraArgs=["--tp", str(steps)])
        if speculator.spec != before:
            speculator.apply(self.operator.decide(speculator))
            assert speculator.agent_image == f"agent:{self.version}"

    @invariant()
    def no_more_than_allowed_restart(self) -> None:
        if hasattr(self, "fleet"):
            turns = (speculator.upgrading and not speculator.gave_back for speculator in self.fleet)
            assert sum(turns) <= self.max_concurrent

    def teardown(self) -> None:
        """Once nothing else happens, every speculator gets through, but those that stay unusable: nobody waits."""
        if not hasattr(self, "fleet"):
            return
        usable = [speculator for speculator in self.fleet if not speculator.unusable]
        for speculator in self.fleet:
            if speculator.unusable:
                self.operator.find_unusable(speculator)
        self.operator.look(*usable)
        self.now += START_SECONDS
        for _ in range(2 * len(self.fleet) + 2):
            self.operator.look(*usable)
            self.no_more_than_allowed_restart()
            for speculator in usable:
                speculator.become_whole()
        self.operator.look(*usable)
        assert {speculator.agent_image for speculator in usable} <= {f"agent:{self.version}"}


TestUpgradeMachine = UpgradeMachine.TestCase
TestUpgradeMachine.settings = settings(max_examples=example_count(150), stateful_step_count=40, deadline=None)
