"""Decides when the inference pods take the images and settings of another version of the operator. Pure.

Why: pod templates follow from the operator's images and code. Without an order, an upgrade of the operator would
restart the pods of every speculator at once, and a bad version would take all of them down.

The Deployment keeps two digests: of what the user chose, and of the template that the operator made of it. A changed
choice is applied at once. Another template for the same choice comes from the operator. It waits until fewer than
``upgrade.maxConcurrent`` other speculators restart, and the live template is applied again meanwhile.

Invariants: no turn is given once more than ``upgrade.maxFailed`` restarts failed. No turn lasts forever: a restart
without progress for as long as pods may take to start has failed, unless a pod only waits for a node. A speculator
that restarts takes any later template at once, so another upgrade, or its rollback, repairs it. A speculator takes a
turn only while all its pods are ready, because a broken one would use up the failures that others may have, and while
no version is rolled out or watched, because live traffic would compare pods of two images. Where the cluster has no
room for a pod beyond ``serving.replicas``, pods are replaced in place, one at a time. The only pod of a speculator is
not replaced in place: the speculator gives its turn to others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from aurora_api.v1alpha1.status import RolloutPhase
from aurora_operator.children.common_pod import merge
from aurora_operator.children.inference_deployment import (
    CHOICE_ANNOTATION,
    RESTART_ANNOTATION,
    SIZES_ANNOTATION,
    START_LIMIT,
    TEMPLATE_ANNOTATION,
    choice_digest,
    inference_template,
    template_digest,
)
from aurora_operator.kubernetes_api import Object
from aurora_operator.observe.observed import DeployedTemplate, Observed
from aurora_operator.operator_config import OperatorConfig

SURGE_WAIT = timedelta(minutes=10)
"""How long a pod beyond ``serving.replicas`` waits for a node. A cluster autoscaler brings a GPU in minutes."""


class UpgradeStage(StrEnum):
    """How far an upgrade of the operator has come at one speculator."""

    CURRENT = "UpToDate"
    WAITING = "WaitingForTurn"
    RESTARTING = "Restarting"
    FAILED = "UpgradeFailed"


@dataclass(frozen=True)
class UpgradeDecision:
    """The template and the annotations to apply, and the stage that the speculator is in then."""

    template: Object
    annotations: Mapping[str, str]
    stage: UpgradeStage = UpgradeStage.CURRENT
    in_place: bool = False
    """Pods are replaced one at a time, without one more: the cluster has no room for it."""


def decide_upgrade(observed: Observed, config: OperatorConfig, now: datetime) -> UpgradeDecision:
    """The template for the inference pods now."""
    serving, live, workload = observed.spec.serving, observed.deployed, observed.deployment
    goes_on = live is not None and live.in_place and workload is not None and not workload.current
    may_surge = serving.replicas > 1 and serving.strategy.max_surge not in (0, "0%")
    decision = _template(observed, config, now)
    return replace(
        decision,
        template=_with_known_sizes(observed, decision.template),
        in_place=may_surge and (goes_on or _surge_waits(observed, now)),
    )


def _with_known_sizes(observed: Observed, template: Object) -> Object:
    """``template``, under which pods that started without a draft start again if the lineage has other sizes.

    The Deployment's controller replaces all pods that were created until the time in :data:`SIZES_ANNOTATION`, as in
    any roll of the user's strategy. The time grows only when a later pod asks, so each pod starts again once.
    """
    live = observed.deployed.template.get("metadata", {}) if observed.deployed else {}
    until = (live.get("annotations") or {}).get(SIZES_ANNOTATION, "")
    pods = [view for view in observed.pods if view.created and not view.terminating]
    created = {view.name: view.created.isoformat() for view in pods if view.created}
    if any(view.agent and view.agent.swap.needs_restart and created[view.name] > until for view in pods):
        until = max(created.values())
    return merge(template, {"metadata": {"annotations": {SIZES_ANNOTATION: until}}}) if until else template


def _surge_waits(observed: Observed, now: datetime) -> bool:
    """Whether the cluster has no room for a pod beyond the wanted ones."""
    pods = [pod for pod in observed.pods if not pod.terminating]
    waits = any(pod.waits_for_node and pod.created and now - pod.created > SURGE_WAIT for pod in pods)
    return waits and len(pods) > observed.spec.serving.replicas


def _template(observed: Observed, config: OperatorConfig, now: datetime) -> UpgradeDecision:
    owner, spec, deployed = observed.owner, observed.spec, observed.deployed
    template, choice = inference_template(owner, spec, config), choice_digest(owner, spec)
    latest = {TEMPLATE_ANNOTATION: template_digest(template), CHOICE_ANNOTATION: choice}
    if deployed is None or (spec.serving.replicas == 0 and not observed.pods):
        return UpgradeDecision(template, latest)
    whole = deployed.whole or _only_unplaced_pods_are_missing(observed)
    since = None if whole else deployed.restarting_since
    is_latest = deployed.template_digest == latest[TEMPLATE_ANNOTATION]
    if since is None and (is_latest or deployed.choice_digest not in ("", choice)):
        return UpgradeDecision(template, latest)
    if since is not None or (whole and _may_take_turn(observed, config)):
        began = min(since, now) if since is not None and is_latest else now
        stage = _stage_of_restart(observed, began, now) if is_latest else _stage_of_apply(observed)
        return UpgradeDecision(template, latest | {RESTART_ANNOTATION: began.isoformat()}, stage)
    kept = {TEMPLATE_ANNOTATION: deployed.template_digest, CHOICE_ANNOTATION: choice}
    return UpgradeDecision(deployed.template, kept, UpgradeStage.WAITING)


def _may_take_turn(observed: Observed, config: OperatorConfig) -> bool:
    """Whether a speculator may restart now: its store can be read, no version is judged, and a place is free.

    A pod that starts without the store serves without a draft. While the operator cannot read the store, the pods of
    the former template serve on.
    """
    fleet, rests = observed.fleet, observed.status.rollout.phase is RolloutPhase.IDLE
    has_room = fleet.restarting < config.upgrade_max_concurrent and fleet.failed <= config.upgrade_max_failed
    return observed.store.ok and rests and fleet.known and has_room


def _stage_of_apply(observed: Observed) -> UpgradeStage:
    """The stage once the template is applied: it has failed where the API server refused the Deployment before."""
    title = f"Deployment {observed.owner.name}:"
    refused = any(error.startswith(title) for error in observed.apply_errors)
    return UpgradeStage.FAILED if refused else UpgradeStage.RESTARTING


def _stage_of_restart(observed: Observed, since: datetime, now: datetime) -> UpgradeStage:
    """The stage while the pods restart since ``since``. One that only waits for a node leaves its place to others."""
    assert observed.deployed is not None, "only pods that exist restart"
    stage = _stage_of_apply(observed)
    no_room = observed.spec.serving.replicas == 1 and _surge_waits(observed, now)
    if stage is UpgradeStage.FAILED or not (no_room or _delay(observed.deployed, since, now)):
        return stage
    return UpgradeStage.CURRENT if observed.unplaced_pods else UpgradeStage.FAILED


def _delay(deployed: DeployedTemplate, since: datetime, now: datetime) -> str:
    """Why the restart makes no progress; empty while it may still go on.

    The Deployment may stay silent, so the operator counts the time too, from the last progress on.
    """
    if deployed.failure or now - max(since, deployed.progressed or since) <= START_LIMIT:
        return deployed.failure
    return f"no further pod became ready for {START_LIMIT // timedelta(minutes=1)} minutes"


def _only_unplaced_pods_are_missing(observed: Observed) -> bool:
    """Every pod that has a place has the Deployment's template and is ready. The others may wait forever."""
    workload, unplaced = observed.deployment, observed.unplaced_pods
    if workload is None or not workload.current or unplaced == 0:
        return False
    return 0 < observed.spec.serving.replicas - unplaced <= workload.ready


def upgrade_failure(observed: Observed, now: datetime) -> str:
    """Why the restart of an upgrade makes no progress; empty while it may still go on, or waits for a node."""
    deployed = observed.deployed
    if deployed is None or deployed.restarting_since is None or deployed.whole or observed.unplaced_pods:
        return ""
    return _delay(deployed, deployed.restarting_since, now)
