"""Decides when the inference pods take the template of another version of the operator. Pure.

Why: pod templates follow from the operator's images and code. Without an order, an upgrade of the operator would
restart the pods of every speculator at once.

The operator keeps the template that it applied last (``children.applied_template``). A change of the speculator's own
spec is applied at once. Any other change comes from the operator, and waits for the speculator's turn:

====================  ==================================================================================================
Stage                 Meaning
====================  ==================================================================================================
CURRENT               The pods have the template of this version of the operator.
WAITING               The pods keep their template until it is their turn.
WITH_SPEC             The pods keep their template until a user changes the spec (``serving.update.operatorUpgrade``).
RESTARTING            The pods restart because of the upgrade, and are not all ready yet.
====================  ==================================================================================================

Invariants: at most ``maxConcurrent`` speculators of the fleet are RESTARTING, not counting those whose spec cannot be
used or that are being deleted. The next turn is given only while no upgrade failed. No turn lasts forever: a restart
fails when it makes no progress for the time that pods may take to start, whatever the Deployment says. A speculator
that is RESTARTING takes any later template at once, so another upgrade, or its rollback, repairs a speculator whose
upgrade failed. A speculator whose restart failed gives its turn back when its user chooses ``WithSpec``. The order goes
on, and the speculator keeps the template that failed. A refused write of the Deployment gives no turn back, because the
pods may go on restarting. The stage follows from the Deployment, so a restarted operator goes on with the order.
A speculator takes no turn while a version is rolled out or watched, because live traffic would compare pods of two
runtime images. A roll delays the turn for at most as long as its judgement and its watch may take.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from aurora_api.v1alpha1.serving import OperatorUpgrade
from aurora_api.v1alpha1.status import RolloutPhase
from aurora_operator.children.applied_template import AppliedTemplate, TemplateInputs, template_inputs
from aurora_operator.children.inference_deployment import inference_template
from aurora_operator.children.startup_timing import start_deadline
from aurora_operator.kubernetes_api import Object
from aurora_operator.observe.observed import DeployedTemplate, FleetView, Observed
from aurora_operator.operator_config import OperatorConfig
from aurora_operator.plan.rollout.analysis.live_analysis import MAX_JUDGEMENT_DEADLINES
from aurora_operator.plan.rollout.roll import JUDGED_PHASES

_JUDGED = JUDGED_PHASES | {RolloutPhase.ROLLING_BACK}
"""Phases in which a speculator takes no turn. A version on a part of the pods is judged during a pause too."""


class UpgradeStage(StrEnum):
    """See the table above."""

    CURRENT = "UpToDate"
    WAITING = "WaitingForTurn"
    WITH_SPEC = "WaitingForSpec"
    RESTARTING = "Restarting"


@dataclass(frozen=True)
class UpgradeDecision:
    """The template to apply, and the stage that the speculator is in then."""

    applied: AppliedTemplate
    annotations: Mapping[str, str]
    stage: UpgradeStage
    whole: bool = True
    """All wanted pods are ready and have the Deployment's template."""
    failure: str = ""
    """Why the upgrade cannot be finished; empty while nothing is known to be wrong."""
    gives_up: bool = False
    """The restart failed, and the speculator gives its turn back now."""
    roll_is_judged: bool = False
    """A version is rolled out or watched, so no turn comes now."""


def decide(observed: Observed, config: OperatorConfig, now: datetime) -> UpgradeDecision:
    """The template for the inference pods now."""
    wanted = _normal(inference_template(observed.owner, observed.spec, config))
    inputs = template_inputs(observed.owner, observed.spec)
    latest = AppliedTemplate(wanted, inputs.every)
    deployed = observed.deployed
    if deployed is None or latest.annotations() is None:
        return _decision(latest, UpgradeStage.CURRENT)
    # Another version of the operator may keep its template in another form: the pods keep the one that they have.
    former = deployed.applied or AppliedTemplate(deployed.template, inputs.every)
    whole = deployed.whole or _only_unplaced_pods_are_missing(observed)
    restarting = former.restarting and not whole
    gives_up = restarting and not _is_staged(observed) and _restart_failure(former, deployed, now) != ""
    former = replace(former, restarting=restarting and not gives_up)
    roll_is_judged = _roll_is_judged(observed, now)
    may_take_turn = observed.store.ok and not roll_is_judged
    made = _next(
        former, latest, inputs, observed, config.upgrade_max_concurrent, whole=whole, may_take_turn=may_take_turn
    )
    made = _timed(made, former, now)
    failure, stage = _failure(made, deployed, observed, now), _stage(made, latest, observed)
    # One that waits for its store or its roll holds nobody up.
    holds_up = observed.store.ok if stage is not UpgradeStage.WAITING else may_take_turn
    decision = _decision(made, stage, whole=whole and holds_up, failure=failure)
    return replace(decision, gives_up=gives_up, roll_is_judged=roll_is_judged)


def _only_unplaced_pods_are_missing(observed: Observed) -> bool:
    """Every pod has the Deployment's template and is ready, but those for which the cluster has no room.

    They may wait forever, and must not hold up the order of the fleet.
    """
    workload, unplaced = observed.deployment, observed.unplaced_pods
    if workload is None or not workload.current or unplaced == 0:
        return False
    return 0 < observed.spec.serving.replicas - unplaced <= workload.ready


def _roll_is_judged(observed: Observed, now: datetime) -> bool:
    """Whether a roll or a watch is under way that may still be judged.

    A canary without traffic, or a pause, may last forever. So a roll counts only for as long as judgement and watch may
    take.
    """
    roll, policy = observed.status.rollout, observed.spec.rollout
    if roll.phase not in _JUDGED or roll.started is None:
        return False
    seconds = MAX_JUDGEMENT_DEADLINES * policy.progress_deadline_seconds + policy.analysis.watch_seconds
    return timedelta(0) <= now - roll.started < timedelta(seconds=seconds)


def _next(
    former: AppliedTemplate,
    latest: AppliedTemplate,
    inputs: TemplateInputs,
    observed: Observed,
    max_concurrent: int,
    *,
    whole: bool,
    may_take_turn: bool,
) -> AppliedTemplate:
    if latest.template == former.template or inputs.differ_from(former.inputs):
        return replace(latest, restarting=former.restarting)
    if former.restarting or _nothing_runs(observed):
        return replace(latest, restarting=former.restarting)
    # A pod that starts needs the store. While the operator cannot read it, the pods of the former template serve on.
    if _is_staged(observed) and may_take_turn and may_restart(observed.fleet, max_concurrent, whole=whole):
        return replace(latest, restarting=True)
    return former


def may_restart(fleet: FleetView, max_concurrent: int, *, whole: bool) -> bool:
    """Whether a speculator may restart now because of the upgrade. ``whole``: all its pods are ready.

    Speculators that are whole come first. One that is broken already might hold up the order.
    """
    if not fleet.known or fleet.failed or fleet.restarting >= max_concurrent:
        return False
    return whole or not fleet.others_wait


def _is_staged(observed: Observed) -> bool:
    return observed.spec.serving.update.operator_upgrade is OperatorUpgrade.STAGED


def _nothing_runs(observed: Observed) -> bool:
    return observed.spec.serving.replicas == 0 and not observed.pods


def _timed(made: AppliedTemplate, former: AppliedTemplate, now: datetime) -> AppliedTemplate:
    """``made`` with the time at which the restart with its template began."""
    if not made.restarting:
        return replace(made, restarting_since=None)
    goes_on = former.restarting and made.template == former.template
    since = former.restarting_since if goes_on else None
    return replace(made, restarting_since=min(since or now, now))


def _failure(made: AppliedTemplate, deployed: DeployedTemplate, observed: Observed, now: datetime) -> str:
    """Why the pods do not take the template; empty while nothing is known to be wrong."""
    return _refusal(observed) or (_restart_failure(made, deployed, now) if made.restarting else "")


def _restart_failure(made: AppliedTemplate, deployed: DeployedTemplate, now: datetime) -> str:
    """Why the restart does not end; empty while it may still go on.

    The Deployment may stay silent, for example while it is paused. So the operator counts the time too, from the last
    progress on.
    """
    if deployed.failure:
        return deployed.failure
    times = [at for at in (made.restarting_since, deployed.progressed) if at is not None]
    limit = start_deadline(made.template)
    if not times or now - max(times) <= limit:
        return ""
    return f"no further pod became ready for {limit // timedelta(minutes=1)} minutes"


def _stage(made: AppliedTemplate, latest: AppliedTemplate, observed: Observed) -> UpgradeStage:
    if made.restarting:
        return UpgradeStage.RESTARTING
    if made.template == latest.template:
        return UpgradeStage.CURRENT
    return UpgradeStage.WAITING if _is_staged(observed) else UpgradeStage.WITH_SPEC


def _refusal(observed: Observed) -> str:
    """The API server's refusal of the Deployment in the last reconcile."""
    title = f"Deployment {observed.owner.name}:"
    return next((error for error in observed.apply_errors if error.startswith(title)), "")


def _decision(
    applied: AppliedTemplate, stage: UpgradeStage, *, whole: bool = True, failure: str = ""
) -> UpgradeDecision:
    return UpgradeDecision(applied, applied.annotations() or {}, stage, whole, failure)


def _normal(template: Object) -> Object:
    """``template`` as it is after a round trip through JSON, so that it can be compared."""
    normal: Object = json.loads(json.dumps(template))
    return normal
