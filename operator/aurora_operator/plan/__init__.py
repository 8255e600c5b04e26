"""``plan(observed, config, now) -> Plan``: pure, so that every decision can be tested without a cluster or a clock."""

from aurora_operator.plan.actions import Loan, Note, Plan, Swap
from aurora_operator.plan.planner import plan

__all__ = ["Loan", "Note", "Plan", "Swap", "plan"]
