"""A speculator in virtual time whose status changes are traced, for tests of whole lives of versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aurora_operator.observe.observed import Observed
from aurora_operator.plan import Plan
from aurora_operator.roll_traces.roll_spans import spans_of
from aurora_operator.roll_traces.span import Span
from tests.unit.operator.plan.test_plan_machine import DEADLINE, JUDGED, PlanMachine


class TracedMachine(PlanMachine):
    """The machine of the plan. Each status that is really written adds the spans that it ends to ``spans``."""

    def __init__(self) -> None:
        super().__init__()
        self.spans: list[Span] = []
        self._planned: dict[tuple[int, str], tuple[Observed, Plan, Any]] = {}
        write = self.cluster.write_status

        def traced_write(status: str, observed_version: int) -> None:
            write(status, observed_version)
            seen, made, now = self._planned[observed_version, status]
            assert made.status is not None
            self.spans += spans_of(seen, made.status, now)

        self.cluster.write_status = traced_write  # type: ignore[method-assign]

    def check_plan(self, seen: Observed, made: Plan) -> None:
        super().check_plan(seen, made)
        self.remember(seen, made)

    def remember(self, seen: Observed, made: Plan) -> None:
        if made.status is not None:
            text = made.status.model_dump_json(by_alias=True, exclude_none=True)
            for operator in self.operators:
                self._planned[operator.observed_version, text] = (seen, made, self.now)


class Life(TracedMachine):
    """A life that a test drives. The promises are checked by the machine alone, within Hypothesis."""

    def check_plan(self, seen: Observed, made: Plan) -> None:
        self.remember(seen, made)

    def live(self, reconciles: int, *, restarts: bool = False) -> None:
        """Reconcile as long as ``reconciles`` say, perhaps with an operator that forgets everything in between."""
        for _ in range(reconciles):
            self.reconcile_and_wait(0)
            if restarts:
                self.operators[0].restart()


def life(*, pods: int = 2, kind: str = "good", gate: str = "passes", rollout: Mapping[str, Any] | None = None) -> Life:
    """A speculator whose pods serve the initial draft, and whose version 1 is offered now."""
    machine = Life()
    machine.pods_start(pods, end="judged", where="Job", kind="good", reconciles=0, pace=0)
    rules = {"analysis": JUDGED, "progressDeadlineSeconds": DEADLINE, **(rollout or {})}
    machine.edit(rollout=rules)
    machine.gate_changes(gate=gate)
    machine.candidate_is_registered(kind=kind)
    return machine


def tree(spans: Sequence[Span]) -> list[str]:
    """The spans in the order of their ends, each as ``parent > name: outcome``. A root has no parent."""
    names = {span.span_id: span.name for span in spans}
    return [_line(span, names) for span in spans]


def _line(span: Span, names: Mapping[str, str]) -> str:
    parent = f"{names.get(span.parent_id, '?')} > " if span.parent_id else ""
    told = [span.attributes.get(name) for name in ("aurora.outcome", "aurora.decision", "k8s.pod.name")]
    return f"{parent}{span.name}: {' '.join(str(part) for part in told if part)}".removesuffix(": ")
