"""``plan(observed, config, now) -> Plan``: pure, so that every decision can be tested without a cluster or a clock."""

from aurora_operator.plan.build import plan
from aurora_operator.plan.plan import Loan, Note, Plan, Swap

__all__ = ["Loan", "Note", "Plan", "Swap", "plan"]
