"""Under everything that may happen to the plan, each phase ends once, in the trace of its version, under its parent.

Two spans may end more than once. The root does if a version that a pin put aside is offered again, and if a first
measurement that had no Job yet begins again. A swap does, with the same times, if its pod lost the version and has it
again without another swap.

The machine is that of ``test_plan_machine``: two operators, each of which may die between any two actions.
"""

from __future__ import annotations

from datetime import timedelta

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule

from aurora_operator.plan.rollout.roll import read_roll
from aurora_operator.roll_traces.roll_spans import _phase_id, _rollout_id
from aurora_operator.roll_traces.span import VersionTrace
from tests.example_count import example_count
from tests.unit.operator.roll_traces.traced_life import TracedMachine
from tests.unit.operator.worlds import OWNER


class TraceMachine(TracedMachine):
    """A lost status begins the lives of its versions again, so the spans of before are checked and put aside."""

    @rule()
    def status_is_lost(self) -> None:
        self.check_spans()
        super().status_is_lost()
        self.spans.clear()

    @rule()
    def operator_state_is_lost(self) -> None:
        """The start of the present phase is lost too."""
        self.check_spans()
        super().operator_state_is_lost()
        self.spans.clear()

    @rule(seconds=st.sampled_from([61, 3700]))
    def clock_is_set(self, *, seconds: int) -> None:
        """Only forwards: a clock that is set back may give two rolls the same start."""
        self.now += timedelta(seconds=seconds)

    def check_spans(self) -> None:
        ids = [span.span_id for span in self.spans if span.name != "offer"]
        swaps = {(span.span_id, span.start, span.end) for span in self.spans if span.name == "swap"}
        phases = [span.span_id for span in self.spans if span.name not in ("offer", "swap")]
        ended = [*phases, *(span_id for span_id, _, _ in swaps)]
        assert len(set(ended)) == len(ended), "a phase ended twice"
        roll = read_roll(self.status)
        open_ids = set()
        if roll.version is not None:
            trace = VersionTrace(OWNER, roll.version)
            open_ids = {_phase_id(trace, roll), _rollout_id(trace, roll)}
        for span in self.spans:
            version = span.attributes["aurora.version"]
            assert isinstance(version, int)
            trace = VersionTrace(OWNER, version)
            assert span.trace_id == trace.trace_id
            assert span.start <= span.end
            if span.name == "offer":
                assert (span.span_id, span.parent_id) == (trace.root_id, "")
            else:
                assert span.parent_id in {*ids, *open_ids, trace.root_id}, f"{span} has no parent"

    def teardown(self) -> None:
        super().teardown()
        self.check_spans()


TraceMachine.TestCase.settings = settings(
    max_examples=example_count(25), stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestTraces = TraceMachine.TestCase
