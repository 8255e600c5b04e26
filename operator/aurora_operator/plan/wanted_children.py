"""Which children should exist. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from aurora_operator.children.inference_deployment import deployment
from aurora_operator.children.supporting_objects import disruption_budget, policies, service_accounts, services
from aurora_operator.children.trainer_deployment import trainer_deployment
from aurora_operator.kubernetes_api import Object
from aurora_operator.observe.observed import JobView, Observed, WorkloadView
from aurora_operator.operator_config import OperatorConfig
from aurora_operator.plan.operator_upgrade import UpgradeDecision
from aurora_operator.plan.rest import trainer_replicas
from aurora_operator.plan.usable_store import holds_workloads


def children(observed: Observed, config: OperatorConfig, upgrade: UpgradeDecision) -> tuple[Object, ...]:
    """The children in the order of creation.

    Only the inference pods wait for their turn after an upgrade of the operator. The trainer follows at once, because
    it resumes where it stopped and serves nobody.

    A Deployment that somebody paused goes on, because it is the operator's own. Paused, it would take no template.

    Objects that others refer to come first. The trainer comes before the inference pods, which wait for its initial
    draft.
    """
    owner, spec = observed.owner, observed.spec
    hung = observed.trainer is not None and observed.trainer.has_hung_pod
    trainer = trainer_deployment(owner, spec, config, trainer_replicas(observed), has_hung_pod=hung)
    serving = deployment(owner, spec, upgrade.template, upgrade.annotations)
    workloads = (_unpaused(trainer, observed.trainer), _unpaused(serving, observed.deployment))
    return (
        *service_accounts(owner, spec),
        *services(owner),
        *policies(owner, spec, config),
        disruption_budget(owner),
        *(() if holds_workloads(observed) else workloads),
    )


def _unpaused(deployment: Object, live: WorkloadView | None) -> Object:
    """``deployment`` with the field that ends the pause of ``live``.

    Without a pause the field is left out: the API server does not store False, so the field would always look changed.
    """
    if live is None or not live.paused:
        return deployment
    return {**deployment, "spec": {**deployment["spec"], "paused": False}}


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
