"""All rules, and the order of their findings. Pure.

The order of :data:`RULES` is that of causes: what stops everything comes first, and what explains a detail comes last.
Among findings of one severity this order says which one is the likeliest cause of what a person sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from aurora_cli.doctor import operator_rules, rollout_rules, serving_rules, store_rules, training_rules
from aurora_cli.doctor.facts import Snapshot
from aurora_cli.doctor.finding import Finding, Rule, Severity

RULES: Final[Sequence[Rule]] = (
    operator_rules.operator_absent,
    operator_rules.operator_stopped,
    operator_rules.operator_yielded,
    operator_rules.spec_unusable,
    store_rules.store_unusable,
    operator_rules.degraded,
    serving_rules.pods_in_trouble,
    serving_rules.pods_without_node,
    serving_rules.serving_not_ready,
    serving_rules.agents_unreachable,
    training_rules.trainer_not_ready,
    operator_rules.upgrade_pending,
    operator_rules.being_deleted,
    operator_rules.spec_unseen,
    training_rules.candidate_not_measured,
    rollout_rules.rollout_stuck,
    rollout_rules.annotations_ignored,
    training_rules.trainer_starved,
    serving_rules.slower_than_off,
    training_rules.no_candidates,
    training_rules.candidates_never_pass,
    rollout_rules.people_decided,
    rollout_rules.rolled_back,
    serving_rules.gains_little,
)


def diagnose(snapshot: Snapshot) -> Sequence[Finding]:
    """What is wrong, problems first, and among equals the likeliest cause first."""
    return sorted((found for rule in RULES for found in rule(snapshot)), key=lambda found: found.severity)


def is_well(findings: Sequence[Finding]) -> bool:
    """Whether nothing is wrong: no problem and no warning."""
    return all(found.severity is Severity.NOTE for found in findings)


def requires_action(findings: Sequence[Finding]) -> bool:
    """Whether there is a problem. A warning may pass by itself."""
    return any(found.severity is Severity.PROBLEM for found in findings)
