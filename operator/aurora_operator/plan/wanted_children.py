"""Which children should exist, and which of them run. Pure.

While training is suspended no trainer runs, and the agents that can be reached are told to trace nothing (``planner``):
only a trainer deletes traces.
"""

from __future__ import annotations

from collections.abc import Sequence

from aurora_operator.children.inference_deployment import deployment
from aurora_operator.children.supporting_objects import disruption_budgets, policies, service_accounts, services
from aurora_operator.children.trainer_deployment import trainer_deployment
from aurora_operator.kubernetes_api import Object
from aurora_operator.observe.observed import (
    PATH_REFUSED,
    RECORDS_LOST,
    TAKEN_OVER,
    JobView,
    Observed,
)
from aurora_operator.operator_config import OperatorConfig
from aurora_operator.plan.lending import withdrawn_pods
from aurora_operator.plan.operator_upgrade import UpgradeDecision

STOPS_TRAINER = (TAKEN_OVER, PATH_REFUSED, RECORDS_LOST)
"""Reasons of a store that the trainer may not write to. After a loss of the records it would begin another lineage, and
the records that somebody puts back would be mixed with those of that lineage."""


def children(observed: Observed, config: OperatorConfig, upgrade: UpgradeDecision) -> tuple[Object, ...]:
    """The children in the order of creation.

    Only the inference pods wait for their turn after an upgrade of the operator. The trainer follows at once, because
    it resumes where it stopped and serves nobody.

    Objects that others refer to come first.
    """
    owner, spec, withdrawn = observed.owner, observed.spec, withdrawn_pods(observed)
    lent = sum(pod.name in withdrawn and not pod.ready for pod in observed.pods)
    trainer = trainer_deployment(owner, spec, config, trainer_replicas(observed))
    serving = deployment(owner, spec, upgrade.template, upgrade.annotations, in_place=upgrade.in_place)
    return (
        *service_accounts(owner, spec),
        *services(owner),
        *policies(owner, spec, config),
        *disruption_budgets(owner, spec.serving, lent),
        *(() if _holds_workloads(observed) else (trainer, serving)),
    )


def trainer_replicas(observed: Observed) -> int:
    """How many trainer pods should run: 1 or 0. Only a trainer can begin the lineage, so it does that first."""
    if trainer_stop_reason(observed) or _stays_stopped(observed):
        return 0
    begun = observed.store.lineage is not None or observed.status.active is not None
    return int(not observed.spec.training.suspended or not begun)


def trainer_stop_reason(observed: Observed) -> str:
    """Why the trainer may write nothing to the store, as the reason of a condition; empty when it may."""
    return observed.store.reason if observed.store.reason in STOPS_TRAINER else ""


def obsolete_jobs(
    jobs: Sequence[JobView], wanted: tuple[int, int] | None, newest_finished: str | None
) -> tuple[str, ...]:
    """Names of the Jobs to delete: those of earlier attempts, even running ones.

    Args:
        wanted: version and attempt of the Job that should exist now.
        newest_finished: name of the candidate's last Job, which is kept for its log.
    """
    return tuple(
        job.name
        for job in jobs
        if (job.version, job.attempt) != wanted and not (job.finished and job.name == newest_finished)
    )


def _holds_workloads(observed: Observed) -> bool:
    """Whether pods must not start, because another speculator owns the root that they would read and write.

    Pods that run already stay, whatever happens to the root.
    """
    return observed.store.reason in (TAKEN_OVER, PATH_REFUSED) and observed.deployment is None


def _stays_stopped(observed: Observed) -> bool:
    """A trainer without a pod starts none while the store cannot be read: its root may be lost."""
    stopped = observed.trainer is not None and observed.trainer.replicas == 0
    return stopped and not observed.store.ok and observed.status.active is not None
