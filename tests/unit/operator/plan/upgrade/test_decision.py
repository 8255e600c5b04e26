"""After an upgrade of the operator, pods keep their template until it is their speculator's turn."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from aurora_api.v1alpha1.conditions import ConditionStatus, ConditionType
from aurora_api.v1alpha1.status import RolloutPhase, RolloutStatus, SpeculatorStatus
from aurora_operator.children.applied_template import (
    MAX_ANNOTATION_BYTES,
    RESTART_ANNOTATION,
    TEMPLATE_ANNOTATION,
    TemplateInputs,
    read_applied_template,
    template_inputs,
)
from aurora_operator.fleet import START_SECONDS
from aurora_operator.observe.observed import FleetView, StoreView
from aurora_operator.plan import plan
from aurora_operator.plan.rollout.analysis.live_analysis import MAX_JUDGEMENT_DEADLINES
from aurora_operator.plan.upgrade.decision import UpgradeStage, decide, may_restart
from tests.example_count import example_count
from tests.unit.operator.upgrades import MAX_UNKNOWN_SECONDS, Operator, Speculator, config, running, started
from tests.unit.operator.worlds import NOW, OWNER, evidence, spec, store

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


def test_a_change_of_the_spec_is_applied_at_once_with_the_new_operators_template() -> None:
    (speculator,) = running("a")
    speculator.change(extraArgs=["--tp", "2"])
    made = decide(replace(speculator.observe(), fleet=OTHERS_RESTART), config(2), NOW)
    assert made.stage is UpgradeStage.CURRENT
    speculator.apply(made)
    assert speculator.agent_image == "agent:2"
    assert not speculator.upgrading


@pytest.mark.parametrize(
    "change", [{"replicas": 5}, {"update": {"maxSurge": 2}}, {"update": {"operatorUpgrade": "WithSpec"}}]
)
def test_a_change_that_concerns_no_pod_is_applied_while_the_template_is_kept(change: dict[str, Any]) -> None:
    (speculator,) = running("a")
    speculator.change(**change)
    speculator.apply(decide(replace(speculator.observe(), fleet=OTHERS_RESTART), config(2), NOW))
    assert speculator.restarts == 0
    assert speculator.live is not None
    assert speculator.live["spec"]["replicas"] == speculator.spec.serving.replicas
    assert speculator.live["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == speculator.spec.serving.update.max_surge
    assert set(speculator.live["spec"]["strategy"]["rollingUpdate"]) == {"maxSurge", "maxUnavailable"}


def test_a_speculator_that_restarts_with_its_spec_only_never_takes_a_turn() -> None:
    waiting, other = running("a", "b")
    waiting.change(update={"operatorUpgrade": "WithSpec"})
    operator = started(config(2), waiting, other)
    operator.look(waiting, other, waiting)
    assert (waiting.restarts, other.restarts) == (0, 1)
    assert operator.decide(waiting).stage is UpgradeStage.WITH_SPEC
    waiting.change(image="runtime:9")
    operator.look(waiting)
    assert waiting.agent_image == "agent:2"


def test_pods_whose_kept_template_cannot_be_read_keep_the_template_that_they_have() -> None:
    (speculator,) = running("a")
    assert speculator.live is not None
    speculator.live["metadata"]["annotations"] = {}
    speculator.live["spec"]["template"]["spec"]["dnsPolicy"] = "ClusterFirst"  # a default of the API server
    held = decide(replace(speculator.observe(), fleet=OTHERS_RESTART), config(2), NOW)
    assert held.stage is UpgradeStage.WAITING
    speculator.apply(held)
    assert (speculator.restarts, speculator.agent_image) == (0, "agent:1")
    speculator.change(extraArgs=["--tp", "2"])
    assert decide(replace(speculator.observe(), fleet=OTHERS_RESTART), config(2), NOW).stage is UpgradeStage.CURRENT


@pytest.mark.parametrize("kept", ["", "no base64", "aGVsbG8=", "eJyrrgUAAXUA+Q=="])
def test_annotations_that_cannot_be_read_count_as_missing(kept: str) -> None:
    assert read_applied_template({"metadata": {"annotations": {TEMPLATE_ANNOTATION: kept}}}) is None


def test_a_failed_upgrade_stops_the_order_and_a_later_version_repairs_it_at_once() -> None:
    first, second = fleet = running("a", "b")
    operator = started(config(2, 2), first)
    operator.look(first)
    first.miss_deadline()
    operator = started(config(2, 2), *fleet)
    operator.look(*fleet, *fleet)
    assert second.restarts == 0
    decided = operator.decide(first)
    assert (decided.stage, decided.failure) == (UpgradeStage.RESTARTING, "timed out progressing")
    rolled_back = started(config(1, 2), *fleet)
    rolled_back.look(first)
    assert first.agent_image == "agent:1"
    first.become_whole()
    rolled_back.look(*fleet)
    assert rolled_back.decide(second).stage is UpgradeStage.CURRENT


def test_a_template_that_the_api_server_refuses_stops_the_order() -> None:
    first, second = fleet = running("a", "b")
    operator = started(config(2), *fleet)
    refused = ("Deployment a: denied by an admission webhook",)
    assert operator.decide(first, apply_errors=refused).failure == refused[0]
    operator.look(second)
    assert second.restarts == 0


def test_speculators_that_are_whole_come_first() -> None:
    broken, whole = fleet = running("a", "b")
    broken.lose_a_pod()
    operator = started(config(2), *fleet)
    operator.look(*fleet)
    assert (broken.restarts, whole.restarts) == (0, 1)
    whole.become_whole()
    operator.look(whole, broken)
    assert broken.restarts == 1


def test_pods_serve_on_while_the_store_cannot_be_read_and_nobody_waits_for_them() -> None:
    """A pod that starts needs its draft from the store, and keys that the operator makes once it reads the channel."""
    (speculator,) = running("a")
    seen = replace(speculator.observe(), store=StoreView(reason="SecretForbidden", error="not in secretNames"))
    decision = decide(seen, config(2), NOW)
    assert (decision.stage, decision.whole) == (UpgradeStage.WAITING, False)
    assert decide(speculator.observe(), config(2), NOW).stage is UpgradeStage.RESTARTING


@pytest.mark.parametrize("phase", RolloutPhase)
def test_no_turn_comes_while_a_version_is_judged_but_no_roll_delays_it_forever(phase: RolloutPhase) -> None:
    """Live traffic would compare pods of two runtime images. A canary without traffic, or a pause, may last forever."""
    (speculator,) = running("a")
    roll = RolloutStatus(phase=phase, version=1, started=NOW)
    seen = replace(speculator.observe(), status=SpeculatorStatus(rollout=roll))
    longest = MAX_JUDGEMENT_DEADLINES * 600 + 300
    for seconds in (0, longest - 1):
        made = decide(seen, config(2), NOW + timedelta(seconds=seconds))
        free = phase is RolloutPhase.IDLE
        assert made.stage is (UpgradeStage.RESTARTING if free else UpgradeStage.WAITING)
        assert made.whole is free, "one that waits for its roll holds nobody up"
    assert decide(seen, config(2), NOW + timedelta(seconds=longest)).stage is UpgradeStage.RESTARTING


@pytest.mark.parametrize(("passed", "stage"), [(True, UpgradeStage.WAITING), (False, UpgradeStage.RESTARTING)])
def test_a_roll_that_begins_now_comes_before_the_turn(*, passed: bool, stage: UpgradeStage) -> None:
    (speculator,) = running("a")
    seen = replace(speculator.observe(), store=store(0, 1, evidence=(evidence(1),) if passed else ()))
    made = plan(seen, config(2), NOW)
    assert made.upgrade is not None
    assert made.upgrade.stage is stage
    waits = _pending(made).message.endswith("until the roll of version 1 and its watch have ended")
    assert waits is passed


def test_no_roll_begins_before_all_pods_have_restarted_with_the_upgraded_template() -> None:
    (speculator,) = running("a")
    started(config(2), speculator).look(speculator)
    passed = store(0, 1, evidence=(evidence(1),))
    made = plan(replace(speculator.observe(), store=passed), config(2), NOW)
    assert made.status is not None
    assert made.status.rollout.phase is RolloutPhase.IDLE
    assert "the pods restart with the upgraded" in made.status.rollout.message
    speculator.become_whole()
    after = plan(replace(speculator.observe(), store=passed, status=made.status), config(2), NOW).status
    assert after is not None
    assert after.rollout.phase is RolloutPhase.CANARY


def test_a_speculator_without_pods_waits_for_nobody() -> None:
    (speculator,) = running("a")
    speculator.change(replicas=0)
    seen = replace(speculator.observe(), pods=(), fleet=OTHERS_RESTART)
    assert decide(seen, config(2), NOW).stage is UpgradeStage.CURRENT


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


def test_a_template_that_is_too_large_to_keep_follows_the_operator_at_once() -> None:
    noise = "".join(hashlib.sha256(str(number).encode()).hexdigest() for number in range(MAX_ANNOTATION_BYTES // 20))
    large = Speculator("a")
    large.change(template={"spec": {"containers": [{"name": "sglang", "env": [{"name": "NOISE", "value": noise}]}]}})
    operator = started(config(1), large)
    operator.look(large)
    made = decide(replace(large.observe(), fleet=OTHERS_RESTART), config(2), NOW)
    assert (made.stage, dict(made.annotations)) == (UpgradeStage.CURRENT, {})


def test_the_annotations_stay_far_below_the_limit_of_kubernetes() -> None:
    (speculator,) = running("a")
    assert speculator.live is not None
    size = sum(len(name) + len(value) for name, value in speculator.live["metadata"]["annotations"].items())
    assert size < 4096


def test_a_field_that_another_version_of_the_operator_knows_is_no_change_by_the_user() -> None:
    inputs = template_inputs(OWNER, spec())
    settings_now = inputs.every["settings"]
    older = {**inputs.every, "settings": {**settings_now, "capture": {}}}
    assert not inputs.differ_from(older), "all fields of capture have their defaults"
    newer = {**inputs.every, "settings": {**settings_now, "capture": {**settings_now["capture"], "turbo": True}}}
    assert not inputs.differ_from(newer)
    chosen = template_inputs(OWNER, spec(capture={"sampleRatio": "0.5"}))
    assert chosen.differ_from(older)
    assert TemplateInputs({"image": None}, {}).differ_from({"image": "mine"})


def test_the_condition_and_the_events_tell_of_the_upgrade() -> None:
    (speculator,) = running("a")
    seen = speculator.observe()
    assert all(c.type is not ConditionType.UPGRADE_PENDING for c in _status(plan(seen, config(1), NOW)).conditions)

    waiting = plan(replace(seen, fleet=OTHERS_RESTART), config(2), NOW)
    pending = _pending(waiting)
    assert (pending.status, pending.reason) == (ConditionStatus.TRUE, "WaitingForTurn")
    stopped = _pending(plan(replace(seen, fleet=FleetView(failed=True)), config(2), NOW))
    assert (stopped.reason, "another speculator failed" in stopped.message) == ("OrderStopped", True)

    restarting = plan(replace(seen, status=_status(waiting)), config(2), NOW)
    assert _pending(restarting).reason == "Restarting"
    assert "UpgradeRestart" in [note.reason for note in restarting.notes]
    assert restarting.upgrade is not None
    speculator.apply(restarting.upgrade)
    speculator.miss_deadline()
    failed = plan(replace(speculator.observe(), status=_status(restarting)), config(2), NOW)
    assert [note.reason for note in failed.notes if note.warning] == ["UpgradeFailed"]
    speculator.become_whole()
    done = plan(replace(speculator.observe(), status=_status(failed)), config(2), NOW)
    assert (_pending(done).status, _pending(done).reason) == (ConditionStatus.FALSE, "UpToDate")


def _status(made: Any) -> Any:
    assert made.status is not None
    return made.status


def _pending(made: Any) -> Any:
    return next(c for c in _status(made).conditions if c.type is ConditionType.UPGRADE_PENDING)


@pytest.mark.parametrize(
    ("fleet", "whole", "expected"),
    [
        (FleetView(), True, True),
        (FleetView(known=False), True, False),
        (FleetView(restarting=1), True, True),
        (FleetView(restarting=2), True, False),
        (FleetView(failed=True), True, False),
        (FleetView(others_wait=True), True, True),
        (FleetView(others_wait=True), False, False),
        (FleetView(), False, True),
    ],
)
def test_a_turn_needs_a_free_place(fleet: FleetView, whole: bool, expected: bool) -> None:
    assert may_restart(fleet, 2, whole=whole) is expected


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
    def a_failed_restart_is_given_up(self, which: int) -> None:
        speculator = self.fleet[which % len(self.fleet)]
        if speculator.upgrading and not speculator.unusable:
            speculator.miss_deadline()
            speculator.change_update("WithSpec")
            made = self.operator.decide(speculator)
            assert made.stage in (UpgradeStage.CURRENT, UpgradeStage.WITH_SPEC)
            speculator.apply(made)
            speculator.gave_back = True

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
            speculator.change_update("Staged")
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
