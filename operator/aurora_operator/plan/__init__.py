"""``plan(observed, config, now) -> Plan``: a pure function, so tests need neither a cluster nor a clock."""

from aurora_operator.plan.actions import EventNote, Plan, Swap, TraceLimit
from aurora_operator.plan.planner import plan

__all__ = ["EventNote", "Plan", "Swap", "TraceLimit", "plan"]
