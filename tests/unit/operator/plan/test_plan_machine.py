"""The five promises under everything that may happen to the whole plan, in virtual time.

``test_rollout_machine`` drives the rollout alone. This machine drives ``plan``: validation, rollout, channel and status
together. Two operators run by mistake, and each may die between any two actions. Store, cluster and agents are
simulated. Candidates are measured in Jobs of their own or on a replica, and Jobs may be refused. Evidence comes late,
twice, about a former active version or never. Agents are silent or lie. The store cannot be reached for a while. The
clock is set forwards and backwards. An autoscaler scales, also to zero, and new pods wait for a node, some forever.
People edit, pin and abort.

``promises`` says what must hold all the while. Not modelled: operators that share one process, and a Kubernetes that
loses what it acknowledged.
"""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from aurora_api.v1alpha1.status import RolloutPhase
from aurora_operator.plan.rollout.world import RolloutPolicy
from aurora_protocol.draft_records import INITIAL_VERSION
from aurora_protocol.evidence_records import Evidence, MeasurementEnd, VerdictKind
from tests.example_count import example_count
from tests.unit.operator.plan.pod_rules import PodRules
from tests.unit.operator.simulated_operator import SimulatedOperator

MOVING, RESTING = 2.0, 15.0
"""Seconds between reconciles, as in the real loop."""
RECONCILES_TO_CONVERGE = 600
DEADLINE = RolloutPolicy().progress_deadline_seconds
JUDGED: dict[str, Any] = {"failureLimit": 0, "watchSeconds": 20}
UNJUDGED: dict[str, Any] = {"minRequests": 0}
KINDS = ("good", "good", "bad", "deadly", "fading")


class PlanMachine(PodRules):
    def __init__(self) -> None:
        super().__init__()
        self.operators = [SimulatedOperator(self.cluster, self.store, self.agent_accepted) for _ in range(2)]
        self.late_evidence: list[Evidence] = []
        self.gate = "passes"
        self.end = "judged"
        """The conditions under which the machine converges once faults stop.

        ``judged``: traffic comes back and is judged. ``quiet``: no traffic comes back, and no older version keeps the
        newest one waiting. ``unjudged``: nothing is judged, and a version that crashes engines is rejected even so.
        """

    @initialize(
        count=st.integers(1, 4),
        end=st.sampled_from(["judged", "judged", "quiet", "unjudged"]),
        where=st.sampled_from(["Job", "Replica"]),
        kind=st.sampled_from(KINDS),
        reconciles=st.integers(0, 30),
        pace=st.integers(0, 2),
    )
    def pods_start(self, count: int, *, end: str, where: str, kind: str, reconciles: int, pace: int) -> None:
        """Pods serve the initial draft, and the first candidate is somewhere in its life."""
        self.end = end
        self.edit(validation={"measureOn": where})
        self.edit(rollout={"analysis": JUDGED})
        self.store.register(INITIAL_VERSION)
        self.reconcile(0)
        for _ in range(count):
            self.pod_joins(slow=False)
        self.all_go_on()
        self.pace = pace
        if reconciles:
            self.candidate_comes_far(kind=kind, reconciles=reconciles)

    # the trainer, the gate and the store -----------------------------------------------------------------------------

    @rule(kind=st.sampled_from(KINDS))
    def candidate_is_registered(self, *, kind: str) -> None:
        version = self.store.newest + 1
        self.store.register(version)
        self.kinds[version] = kind

    @rule(kind=st.sampled_from(KINDS), reconciles=st.integers(4, 20))
    def candidate_comes_far(self, *, kind: str, reconciles: int) -> None:
        """Most faults matter in the middle of a version's life, which takes many reconciles to reach."""
        self.candidate_is_registered(kind=kind)
        self.time_goes_on(reconciles=reconciles)

    @rule(
        gate=st.sampled_from(
            ["passes", "passes", "passes late", "rejects", "wavers", "gives way", "fails", "never ends", "no Jobs"]
        )
    )
    def gate_changes(self, *, gate: str) -> None:
        self.gate, self.cluster.refuses_jobs = gate, gate == "no Jobs"

    def jobs_end(self) -> None:
        """Jobs end as the gate is now. Late evidence arrives by a rule of its own."""
        verdict = {"rejects": VerdictKind.REJECT, "wavers": VerdictKind.INCONCLUSIVE}.get(self.gate, VerdictKind.PASS)
        for name, job in sorted(self.cluster.jobs.items()):
            if self.gate == "gives way" and self.store.newest > job.version:
                self.end_job(name, VerdictKind.INCONCLUSIVE, end=MeasurementEnd.GAVE_WAY)
            elif self.gate != "never ends":
                self.end_job(name, None if self.gate == "fails" else verdict, late=self.gate == "passes late")

    @precondition(lambda self: self.cluster.jobs)
    @rule(which=st.integers(0, 3), ended=st.sampled_from(["succeeded", "failed", "vanishes"]), late=st.booleans(),
          verdict=st.sampled_from([*VerdictKind, None]), end=st.none() | st.sampled_from(MeasurementEnd))  # fmt: skip
    def job_ends(
        self, *, which: int, ended: str, late: bool, verdict: VerdictKind | None, end: MeasurementEnd | None
    ) -> None:
        """A Job ends in any way. Its evidence was written before, comes afterwards, or never comes."""
        name = sorted(self.cluster.jobs)[which % len(self.cluster.jobs)]
        self.end_job(name, verdict, late=late, ended=ended, end=end)

    def end_job(
        self,
        name: str,
        verdict: VerdictKind | None,
        *,
        late: bool = False,
        ended: str = "",
        end: MeasurementEnd | None = None,
    ) -> None:
        job = self.cluster.jobs[name]
        if not job.ended and verdict is not None:
            self.late_evidence.append(job.measured(verdict, end))
            if not late:
                self.evidence_arrives(which=-1)
        if ended == "vanishes":
            del self.cluster.jobs[name]
        else:
            job.ended = job.ended or ended or ("succeeded" if verdict else "failed")

    @precondition(lambda self: self.late_evidence)
    @rule(which=st.integers(0, 3))
    def evidence_arrives(self, *, which: int) -> None:
        """Evidence is created once: of two measurements under one attempt the first counts."""
        proof = self.late_evidence.pop(which % len(self.late_evidence))
        self.store.evidence.setdefault((proof.version, proof.attempt), proof)
        if proof.verdict.kind is not VerdictKind.PASS:
            self.blamed.add(proof.version)

    @rule(count=st.sampled_from([None, 0, 15, 16]))
    def trainer_counts_held_out_requests(self, *, count: int | None) -> None:
        """A measurement needs 16. The trainer counts anew after its state was lost."""
        self.store.held_out = count

    @rule(down=st.booleans())
    def store_changes(self, *, down: bool) -> None:
        self.store.down = down

    # people and the clock --------------------------------------------------------------------------------------------

    def edit(self, **parts: Any) -> None:
        self.cluster.spec = {**self.cluster.spec, **parts}
        self.cluster.edited()

    @rule(
        paused=st.booleans(),
        canary=st.integers(1, 3),
        judged=st.booleans(),
    )
    def person_edits_the_rollout(self, *, paused: bool, canary: int, judged: bool) -> None:
        rules = {"analysis": JUDGED if judged else UNJUDGED, "paused": paused}
        self.edit(rollout=self.pinned() | rules | {"canary": canary})

    @rule(arguments=st.sampled_from([[], ["--one"], ["--other"]]), where=st.sampled_from(["Job", "Replica"]))
    def person_edits_how_pods_serve(self, *, arguments: list[str], where: str) -> None:
        """Change the arguments, often back before the operator observes, and the place of measurements."""
        self.edit(serving={"replicas": 2, "extraArgs": arguments}, validation={"measureOn": where})

    @rule(back=st.none() | st.integers(0, 3), known=st.booleans())
    def person_changes_the_pin(self, *, back: int | None, known: bool) -> None:
        """Pin a version, mostly one that once passed."""
        versions = [v for v in self.store.registrations if self.store.passed(v) or not known]
        self.person_pins(pin=None if back is None else sorted(versions)[max(-1 - back, -len(versions))])

    @rule(back=st.integers(0, 2), reconciles=st.integers(1, 6))
    def person_pins_for_a_while(self, *, back: int, reconciles: int) -> None:
        """Afterwards, candidates are compared with another active version than before."""
        self.person_changes_the_pin(back=back, known=True)
        self.time_goes_on(reconciles=reconciles)
        self.person_pins(pin=None)

    def pinned(self) -> dict[str, int]:
        """The part of ``spec.rollout`` that pins a version."""
        pin = self.cluster.spec.get("rollout", {}).get("pin")
        return {} if pin is None else {"pin": pin}

    def person_pins(self, *, pin: int | None) -> None:
        kept = {key: value for key, value in self.cluster.spec.get("rollout", {}).items() if key != "pin"}
        self.edit(rollout=kept | ({} if pin is None else {"pin": pin}))
        self.forgive_late()
        if pin is not None:
            self.unjudged.add(pin)

    @rule(wish=st.sampled_from(["abort", "nothing"]), back=st.integers(0, 2))
    def person_decides(self, *, wish: str, back: int) -> None:
        version = max(0, self.store.newest - back)
        self.cluster.annotations = {wish: version}
        self.cluster.edited()
        if wish != "nothing":
            self.blamed.add(version)

    @rule()
    def status_is_lost(self) -> None:
        """An older operator wrote a status that cannot be read, or somebody deleted it."""
        self.cluster.status = "{}"
        self.cluster.edited()

    @rule()
    def operator_state_is_lost(self) -> None:
        """The operator cannot read its own state, after an upgrade or an edit: a roll stops, and a watch ends."""
        lost = self.status
        if lost.rollout.phase is not RolloutPhase.IDLE and lost.rollout.version == self.channel.active:
            self.unjudged.add(self.channel.active)
        self.cluster.status = lost.model_copy(update={"operator_state": {}}).model_dump_json(
            by_alias=True, exclude_none=True
        )
        self.cluster.edited()

    @rule(seconds=st.sampled_from([-3700, -61, -10, 61, 3700]))
    def clock_is_set(self, *, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @rule(seconds=st.sampled_from([2, 15, 61, 3700]))
    def nobody_observes(self, *, seconds: int) -> None:
        self.pass_time(seconds)

    def pass_time(self, seconds: float) -> None:
        """A pod that is busy for more than half the deadline may count against the version it was asked for."""
        self.now += timedelta(seconds=seconds)
        self.monotonic_seconds += seconds
        self.lent += self.cluster.pass_time(seconds)
        for pod in self.cluster.pods:
            busy = pod.scheduled and (pod.swapping or not pod.up)
            pod.seconds = pod.seconds + (seconds if seconds < DEADLINE else 0) if busy else 0.0
            if pod.seconds > DEADLINE / 2:
                self.blame()

    # the operators ---------------------------------------------------------------------------------------------------

    @rule(who=st.integers(0, 1))
    def operator_observes(self, *, who: int) -> None:
        self.operators[who].observe()

    @precondition(lambda self: any(operator.has_observed for operator in self.operators))
    @rule(who=st.integers(0, 1))
    def operator_decides(self, *, who: int) -> None:
        operator = self.operators[who]
        if operator.has_observed:
            self.check_plan(*operator.decide(self.now, self.monotonic_seconds))

    @precondition(lambda self: any(operator.acting for operator in self.operators))
    @rule(who=st.integers(0, 1), count=st.integers(1, 5))
    def operator_acts(self, *, who: int, count: int) -> None:
        self.operators[who].act(count)

    @rule(reconciles=st.integers(1, 6), decided=st.booleans(), count=st.integers(1, 9))
    def other_operator_is_late(self, *, reconciles: int, decided: bool, count: int) -> None:
        """The second operator acts on an observation that the first one has overtaken."""
        self.operators[1].observe()
        if decided:
            self.operator_decides(who=1)
        self.time_goes_on(reconciles=reconciles)
        self.operator_decides(who=1)
        self.operators[1].act(count)

    @rule(who=st.integers(0, 1))
    def operator_dies(self, *, who: int) -> None:
        self.operators[who].restart()

    @rule(reconciles=st.integers(1, 8))
    def time_goes_on(self, *, reconciles: int) -> None:
        for _ in range(reconciles):
            self.reconcile_and_wait(0)

    @rule(reconciles=st.integers(4, 12))
    def minutes_go_by(self, *, reconciles: int) -> None:
        """The operator reconciles as rarely as an idle one, and yet often enough for deadlines to count."""
        for _ in range(reconciles):
            self.reconcile_and_wait(0)
            self.pass_time(RESTING)

    def reconcile_and_wait(self, who: int) -> None:
        """One operator reconciles, and the world goes on until the next reconcile."""
        moving = self.reconcile(who)
        self.jobs_end()
        self.all_go_on()
        for pod in self.cluster.pods:
            kind = self.kinds.get(pod.version or 0, "good")
            if pod.serves and kind == "deadly" and self.traffic:
                pod.crash(self.channel.active)
            elif self.traffic:
                fades = kind == "fading" and pod.version == self.channel.active
                pod.serve(1.1 if kind == "bad" or fades else 2.0)
        self.pass_time(MOVING if moving else RESTING)

    def reconcile(self, who: int) -> bool:
        operator = self.operators[who]
        operator.observe()
        seen, made = operator.decide(self.now, self.monotonic_seconds)
        self.check_plan(seen, made)
        operator.act(100)
        return made.moving

    # convergence -----------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        """Once faults stop, all pods serve the right version, the newest one is decided, and nothing is under way.

        Pods without a node stay without one. They must keep nothing from its end.
        """
        if not self.store.channels:
            return
        rules = UNJUDGED if self.end == "unjudged" else JUDGED
        self.edit(rollout=self.pinned() | {"analysis": rules})
        self.cluster.annotations, self.store.down, self.traffic, self.gate = {}, False, self.end != "quiet", "passes"
        self.store.held_out = 16
        if not self.store.passed(self.pinned().get("pin", INITIAL_VERSION)):
            self.person_pins(pin=None)  # nothing is rolled out while a version that never passed is pinned
        self.cluster.edited()
        if not any(pod.scheduled for pod in self.cluster.pods):
            self.pod_joins(slow=False)
        for pod in self.cluster.pods:
            pod.salt = ""
        self.faults_end()
        self.cluster.refuses_jobs, self.lent = False, Counter()
        on_replica = self.cluster.spec["validation"]["measureOn"] == "Replica"
        if on_replica and sum(pod.scheduled for pod in self.cluster.pods) < 2:
            self.pod_joins(slow=False)
        if self.end == "unjudged":
            self.candidate_is_registered(kind="deadly")
        for number in range(RECONCILES_TO_CONVERGE):
            self.reconcile_and_wait(number % 2)
            if self.end == "quiet":
                self.pass_time(RESTING)  # a canary without traffic gives way after ten progress deadlines only
            self.only_passed_versions_serve()
            assert all(count <= 2 for count in self.lent.values()), f"a replica comes and goes: {self.lent}"
            if self.converged():
                return
        raise AssertionError(
            f"still {self.status.rollout}, {self.status.candidate}, {self.cluster.pods}, {self.channel}"
        )

    def converged(self) -> bool:
        active, pin, status = self.channel.active, self.pinned().get("pin"), self.status
        if self.kinds[active] == "deadly" and active in self.unjudged:
            return True  # a person has to remove a version admitted without judgement: no pod stays up to compare with
        if self.end == "quiet" and status.rollout.phase is RolloutPhase.JUDGING:
            refused = {*status.rejected, *self.channel.rejected}
            newest = max(version for version in self.store.registrations if version not in refused)
            return status.rollout.version == newest and pin is None
        decided = self.store.newest <= active or self.store.newest in {*status.rejected, *self.channel.rejected}
        pods = [pod for pod in self.cluster.pods if pod.scheduled]
        at_rest = all(pod.version == active and pod.serves and not pod.swapping for pod in pods)
        right = pin in (None, active)
        if not (status.rollout.phase is RolloutPhase.IDLE and at_rest and right and (decided or pin is not None)):
            return False
        wrong = {version for version, kind in self.kinds.items() if kind in ("bad", "deadly")}
        # Once people, or a fading version, let a bad version in, the next version need only be as good.
        excused = self.end == "quiet" or wrong & self.unjudged or "fading" in self.kinds.values()
        assert active not in wrong or excused, "live traffic did not reject the version"
        return True


PlanMachine.TestCase.settings = settings(
    max_examples=example_count(80), stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestPlan = PlanMachine.TestCase
