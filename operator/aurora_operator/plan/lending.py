"""Lends a replica to a measurement (``validation.measureOn: Replica``), and takes the replica back. Pure.

The plan first names the pod in the status, and then asks the pod's agent to withdraw the pod. Once the agent confirms,
the Job is created, and renews the lease from then on. Any other withdrawn pod is taken back, even when the status was
lost.

A pod for which the cluster has no room may wait forever, so it neither delays a measurement nor ends one.

Invariants: a pod is withdrawn only while nothing is rolled out, every wanted pod that has a place is ready and serves
the active version, another pod is left to serve, and the others have room for all requests. At most one pod is
withdrawn. When another pod that has a place is not ready, or the other pods have no room any more, the withdrawn pod is
taken back, measured or not: service comes before measurements. The pod is taken back too when there are more pods than
wanted, because Kubernetes deletes pods that are not ready first. The attempt has failed then (``plan.candidate``). A
pod that is being deleted is not measured on anew. A measurement that runs on it goes on for as long as its engine does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from aurora_api.v1alpha1.status import CandidatePhase, CandidateStatus
from aurora_api.v1alpha1.validation import MeasureOn
from aurora_operator.observe.observed import Observed, PodView
from aurora_operator.plan.actions import LeaseRequest
from aurora_protocol.agent_api import MeasurementPhase, MeasurementRequest

SPARED_SHARE: Final = 0.8
"""A replica is lent while the other pods would have at most this share of the requests that they can run."""
LEASE_SECONDS = 300
"""The first lease covers the start of the Job's pod. From then on the Job renews a shorter lease."""


@dataclass(frozen=True)
class LendingDecision:
    """The candidate with its replica and message, and the requests to agents."""

    candidate: CandidateStatus | None
    leases: tuple[LeaseRequest, ...] = ()
    pod: PodView | None = None
    """The withdrawn pod that the candidate's Job may measure on. None: no Job may be created on a replica now."""


def withdrawn_pods(observed: Observed) -> frozenset[str]:
    """Names of the pods that are withdrawn, or that the status names as lent while their agent does not answer.

    These pods serve no clients, which is no fault.
    """
    candidate = observed.status.candidate
    lent = candidate.pod if candidate is not None and candidate.phase is CandidatePhase.VALIDATING else None
    return frozenset(
        view.name
        for view in observed.pods
        if view.measurement is not None or (view.name == lent and view.agent is None and not view.terminating)
    )


def lend_replica(
    observed: Observed, candidate: CandidateStatus | None, epoch: int, *, may_lend: bool
) -> LendingDecision:
    """The next step of lending a replica to ``candidate``, whose state validation has just decided.

    Args:
        epoch: fences the requests to the agents.
        may_lend: no roll goes on, begins or ends in this reconcile, and the measurement may begin.
    """
    measured = candidate if may_lend and _needs_replica(observed, candidate) else None
    lent = _pod_withdrawn_for(observed, measured)
    returns = tuple(lease for view in observed.pods if view is not lent for lease in _take_back(view, epoch))
    if measured is None:
        return LendingDecision(candidate, returns)
    if lent is not None and lent.name != measured.pod:
        measured = measured.model_copy(update=_measuring_on(lent))
    attempt = (measured.version, measured.attempt)
    job = next((job for job in observed.jobs if (job.version, job.attempt) == attempt), None)
    if job is not None:  # it renews the lease, unless somebody suspended it
        over = job.suspended and lent is None
        return LendingDecision(measured.model_copy(update={"pod": None}) if over else measured, returns)
    if lent is not None:
        return _withdrawn_without_job(observed, measured, lent, returns, epoch)
    return _withdraw(observed, measured, returns, epoch)


def recall(observed: Observed) -> str:
    """Why the pod that is withdrawn for the stored candidate has to serve again; empty when it can be spared."""
    lent = _pod_withdrawn_for(observed, observed.status.candidate)
    return _recall_reason(observed, lent) if lent is not None else ""


def _withdrawn_without_job(
    observed: Observed, candidate: CandidateStatus, lent: PodView, returns: tuple[LeaseRequest, ...], epoch: int
) -> LendingDecision:
    """The pod is withdrawn and the Job does not exist yet: create the Job, or take the pod back."""
    if reason := _template_changing(observed):
        return LendingDecision(_waiting(candidate, reason), (*returns, *_take_back(lent, epoch)))
    returning = lent.measurement is not None and lent.measurement.phase is MeasurementPhase.RETURNING
    has_left_service = bool(lent.ip) and not lent.ready and not returning
    return LendingDecision(candidate, returns, lent if has_left_service else None)


def _withdraw(
    observed: Observed, candidate: CandidateStatus, returns: tuple[LeaseRequest, ...], epoch: int
) -> LendingDecision:
    """Withdraw the pod that the status names, or choose one, unless no pod can be spared."""
    if reason := _refusal_reason(observed):
        return LendingDecision(_waiting(candidate, reason), returns)
    views = sorted(_pods_with_node(observed), key=lambda view: view.name)
    chosen = next((view for view in views if view.name == candidate.pod), views[-1])
    lease = _lease_request(chosen, candidate.job or "", epoch, lease_seconds=LEASE_SECONDS)
    return LendingDecision(candidate.model_copy(update=_measuring_on(chosen)), (*returns, lease))


def _waiting(candidate: CandidateStatus, reason: str) -> CandidateStatus:
    return candidate.model_copy(update={"pod": None, "message": f"waiting for a replica: {reason}"})


def _measuring_on(view: PodView) -> dict[str, str]:
    return {"pod": view.name, "message": f"measuring on the replica {view.name}, which has left the Service"}


def _pod_withdrawn_for(observed: Observed, candidate: CandidateStatus | None) -> PodView | None:
    """The pod that is withdrawn for ``candidate``: the pod that the status names, or any when the status was lost."""
    if candidate is None:
        return None
    alive = [view for view in observed.pods if view.measurement is not None and not view.terminating]
    views = [v for v in alive if v.measurement is not None and v.measurement.measurement == candidate.job]
    return next((view for view in views if view.name == candidate.pod), views[0] if views else None)


def _needs_replica(observed: Observed, candidate: CandidateStatus | None) -> bool:
    validating = candidate is not None and candidate.phase is CandidatePhase.VALIDATING
    on_replica = observed.spec.validation.measure_on is MeasureOn.REPLICA
    return validating and on_replica and observed.spec.rollout.pin is None and not observed.spec_fault


def _lease_request(view: PodView, measurement: str, epoch: int, *, lease_seconds: int) -> LeaseRequest:
    begin = lease_seconds > 0
    request = MeasurementRequest(measurement=measurement, epoch=epoch, lease_seconds=lease_seconds, begin=begin)
    return LeaseRequest(view.name, view.ip, request)


def _take_back(view: PodView | None, epoch: int) -> tuple[LeaseRequest, ...]:
    """The request that takes ``view`` back, if the pod is withdrawn and not on its way back, or being deleted."""
    measurement = view.measurement if view is not None else None
    if view is None or measurement is None or view.terminating or measurement.phase is MeasurementPhase.RETURNING:
        return ()
    return (_lease_request(view, measurement.measurement, epoch, lease_seconds=0),)


def _recall_reason(observed: Observed, lent: PodView) -> str:
    """Why the lent pod has to serve again; empty when it can be spared."""
    placed, wanted = len(_pods_with_node(observed)), observed.spec.serving.replicas
    if placed > wanted:
        return f"{placed} pods run and {wanted} are wanted. Kubernetes deletes a pod that is not ready first"
    serving = sum(view.ready and not view.terminating for view in observed.pods if view is not lent)
    others = max(_placed_pods(observed) - 1, 1)
    if serving < others:
        return f"{serving} of the {others} other pods are ready"
    return _crowding(observed, others, 1)


def _crowding(observed: Observed, others: int, share: float) -> str:
    """Why the requests of all pods are more than ``share`` of what ``others``, the pods left to serve, can run.

    Empty when they are not, or when a pod does not tell its requests. The text does not name their number, because the
    status would be written with each new text.
    """
    counts = [view.agent.requests_now if view.agent else None for view in observed.pods if view.serves]
    known = [count for count in counts if count is not None]
    limit = int(share * observed.spec.serving.max_running_requests * others)
    if len(known) < len(counts) or sum(known) <= limit:
        return ""
    return f"more than {limit} requests run, too many for the other pods"


def _pods_with_node(observed: Observed) -> tuple[PodView, ...]:
    return tuple(view for view in observed.pods if not view.terminating and not view.waits_for_node)


def _placed_pods(observed: Observed) -> int:
    """How many pods should be ready now: the wanted ones, without those that have no place."""
    return max(observed.spec.serving.replicas - observed.unplaced_pods, 0)


def _template_changing(observed: Observed) -> str:
    """Why no pod may be measured on now; empty when all pods have the current template.

    A pod of another template would be measured with old settings, and the result reported for the current ones.
    """
    current = observed.deployment is not None and observed.deployment.current
    return "" if current else "pods of the current template are being started"


def _refusal_reason(observed: Observed) -> str:
    """Why no replica may be withdrawn now; empty when one may."""
    wanted, channel, views = _placed_pods(observed), observed.store.channel, _pods_with_node(observed)
    if reason := _template_changing(observed):
        return reason
    if observed.fleet.measured_first:
        return f"{observed.fleet.measured_first} is measured first"
    if lent := sorted(withdrawn_pods(observed)):
        return f"{', '.join(lent)} must return to the Service first"
    ready = [view for view in views if view.ready and view.ip and view.agent is not None and view.agent.engine_ready]
    active = [v for v in ready if channel is not None and v.agent is not None and v.agent.version == channel.active]
    if len(active) < wanted or len(views) != wanted:
        return f"{len(active)} of {wanted} pods are ready and serve the active version"
    if wanted < 2:
        return f"{wanted} of {observed.spec.serving.replicas} replicas has a place, and one has to go on serving"
    return _crowding(observed, wanted - 1, SPARED_SHARE)
