"""Decides when the inference pods take the images and settings of another version of the operator. Pure.

Why: pod templates follow from the operator's images and code. Without an order, an upgrade of the operator would
restart the pods of every speculator at once, and a bad version would take all of them down.

The Deployment keeps two digests: of what the user chose, and of the template that the operator made of it. A changed
choice is applied at once. Another template for the same choice comes from the operator. It waits until fewer than
``upgrade.maxConcurrent`` other speculators restart, and the live template is applied again meanwhile.

Invariants: no turn is given once more than ``upgrade.maxFailed`` restarts failed. No turn lasts forever: a restart
without progress for as long as pods may take to start has failed, unless a pod only waits for a node. A speculator
that restarts takes any later template at once, so another upgrade, or its rollback, repairs it. A speculator takes no
turn while a version is rolled out or watched, because live traffic would compare pods of two images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from aurora_api.v1alpha1.status import RolloutPhase
from aurora_operator.children.inference_deployment import (
    CHOICE_ANNOTATION,
    RESTART_ANNOTATION,
    TEMPLATE_ANNOTATION,
    choice_digest,
    inference_template,
    start_deadline,
    template_digest,
)
from aurora_operator.kubernetes_api import Object
from aurora_operator.observe.observed import DeployedTemplate, FleetView, Observed
from aurora_operator.operator_config import OperatorConfig
from aurora_operator.plan.rollout.analysis import MAX_JUDGEMENT_DEADLINES
from aurora_operator.plan.rollout.policy import RolloutPolicy


class UpgradeStage(StrEnum):
    """How far an upgrade of the operator has come at one speculator."""

    CURRENT = "UpToDate"
    WAITING = "WaitingForTurn"
    RESTARTING = "Restarting"
    WITHOUT_ROOM = "WaitingForRoom"
    """The restart made no progress in time, and a pod has no node. The next speculator follows."""
    FAILED = "UpgradeFailed"


@dataclass(frozen=True)
class UpgradeDecision:
    """The template and the annotations to apply, and the stage that the speculator is in then."""

    template: Object
    annotations: Mapping[str, str]
    stage: UpgradeStage = UpgradeStage.CURRENT
    whole: bool = True
    """All wanted pods are ready and have the Deployment's template, and nothing keeps the speculator from its turn."""
    failure: str = ""
    """Why the restart failed."""


def decide_upgrade(observed: Observed, config: OperatorConfig, now: datetime) -> UpgradeDecision:
    """The template for the inference pods now."""
    owner, spec, deployed = observed.owner, observed.spec, observed.deployed
    template, choice = inference_template(owner, spec, config), choice_digest(owner, spec)
    latest = {TEMPLATE_ANNOTATION: template_digest(template), CHOICE_ANNOTATION: choice}
    if deployed is None or (spec.serving.replicas == 0 and not observed.pods):
        return UpgradeDecision(template, latest)
    whole = deployed.whole or _only_unplaced_pods_are_missing(observed)
    since = None if whole else deployed.restarting_since
    if deployed.template_digest == latest[TEMPLATE_ANNOTATION]:
        return UpgradeDecision(template, latest) if since is None else _going_on(observed, template, latest, since, now)
    if since is None and deployed.choice_digest not in ("", choice):
        return UpgradeDecision(template, latest)
    # A pod that starts needs the store. While the operator cannot read it, the pods of the former template serve on.
    may_take_turn = observed.store.ok and not _roll_is_judged(observed, now)
    if since is not None or (may_take_turn and may_restart(observed.fleet, config, whole=whole)):
        failure = _refusal(observed)
        stage = UpgradeStage.FAILED if failure else UpgradeStage.RESTARTING
        return UpgradeDecision(template, latest | _since(now), stage, failure=failure)
    kept = {TEMPLATE_ANNOTATION: deployed.template_digest, CHOICE_ANNOTATION: choice}
    return UpgradeDecision(deployed.template, kept, UpgradeStage.WAITING, whole and may_take_turn)


def may_restart(fleet: FleetView, config: OperatorConfig, *, whole: bool) -> bool:
    """Whether a speculator may restart now. Those that are ``whole`` come first: a broken one might fail."""
    has_room = fleet.restarting < config.upgrade_max_concurrent and fleet.failed <= config.upgrade_max_failed
    return fleet.known and has_room and (whole or not fleet.others_wait)


def _going_on(
    observed: Observed, template: Object, latest: Mapping[str, str], since: datetime, now: datetime
) -> UpgradeDecision:
    """The decision while the pods restart because of the upgrade since ``since``."""
    assert observed.deployed is not None, "only pods that exist restart"
    stage, failure = UpgradeStage.RESTARTING, _refusal(observed)
    if not failure and (failure := _delay(observed.deployed, template, since, now)) and observed.unplaced_pods:
        stage, failure = UpgradeStage.WITHOUT_ROOM, ""
    stage = UpgradeStage.FAILED if failure else stage
    return UpgradeDecision(template, {**latest, **_since(min(since, now))}, stage, failure=failure)


def _since(time: datetime) -> dict[str, str]:
    return {RESTART_ANNOTATION: time.isoformat()}


def _delay(deployed: DeployedTemplate, template: Object, since: datetime, now: datetime) -> str:
    """Why the restart makes no progress; empty while it may still go on.

    The Deployment may stay silent, so the operator counts the time too, from the last progress on.
    """
    limit = start_deadline(template)
    if deployed.failure or now - max(since, deployed.progressed or since) <= limit:
        return deployed.failure
    return f"no further pod became ready for {limit // timedelta(minutes=1)} minutes"


def _refusal(observed: Observed) -> str:
    """The API server's refusal of the Deployment in the last reconcile."""
    title = f"Deployment {observed.owner.name}:"
    return next((error for error in observed.apply_errors if error.startswith(title)), "")


def _only_unplaced_pods_are_missing(observed: Observed) -> bool:
    """Every pod that has a place has the Deployment's template and is ready. The others may wait forever."""
    workload, unplaced = observed.deployment, observed.unplaced_pods
    if workload is None or not workload.current or unplaced == 0:
        return False
    return 0 < observed.spec.serving.replicas - unplaced <= workload.ready


def _roll_is_judged(observed: Observed, now: datetime) -> bool:
    """Whether a roll or a watch is under way, for at most as long as its judgement and its watch may take.

    A canary without traffic, or a pause, may last forever.
    """
    roll, policy = observed.status.rollout, RolloutPolicy.of(observed.spec.rollout)
    if roll.phase is RolloutPhase.IDLE or roll.started is None:
        return False
    seconds = MAX_JUDGEMENT_DEADLINES * policy.progress_deadline_seconds + policy.analysis.watch_seconds
    return timedelta(0) <= now - roll.started < timedelta(seconds=seconds)


def upgrade_failure(observed: Observed, now: datetime) -> str:
    """Why the restart of an upgrade makes no progress; empty while it may still go on, or waits for a node."""
    deployed = observed.deployed
    if deployed is None or deployed.restarting_since is None or deployed.whole or observed.unplaced_pods:
        return ""
    return _delay(deployed, deployed.template, deployed.restarting_since, now)
