"""Lends a replica to a measurement (``validation.measureOn: Replica``), and takes the replica back. Pure.

The pod is chosen in the status first and then withdrawn. Only when its agent confirms that is the Job created, which
renews the lease. Every other pod that is withdrawn is taken back, also after the status was lost.

Invariants: a pod is withdrawn only while nothing is rolled out, every wanted pod is ready and serves the active
version, another pod is left, and the disruption budget allows one more disruption. At most one pod is withdrawn. It is
taken back, measured or not, once another pod is not ready: service comes before measurements.
"""

from __future__ import annotations

from dataclasses import dataclass

from aurora_api.v1alpha1.status import CandidatePhase, CandidateStatus
from aurora_api.v1alpha1.validation import MeasureOn
from aurora_operator.observe.observed import Observed, PodView
from aurora_operator.plan.actions import Loan
from aurora_protocol.agent_api import MeasurementPhase, MeasurementRequest

LEASE_SECONDS = 300
"""Time for the Job's pod to start. From then on the Job renews a shorter lease."""


@dataclass(frozen=True)
class LendingDecision:
    """What is to be done about replicas for ``candidate``."""

    candidate: CandidateStatus | None
    loans: tuple[Loan, ...] = ()
    pod: PodView | None = None
    """The withdrawn pod that the candidate's Job may measure on. None: no Job may be created on a replica now."""


def away(observed: Observed) -> frozenset[str]:
    """Pods that are withdrawn, or were when their agent last answered. They serve no clients, and that is no fault."""
    candidate = observed.status.candidate
    lent = candidate.pod if candidate is not None and candidate.phase is CandidatePhase.VALIDATING else None
    return frozenset(
        view.name
        for view in observed.pods
        if view.measurement is not None or (view.name == lent and view.agent is None and not view.terminating)
    )


def lend_replica(
    observed: Observed, candidate: CandidateStatus | None, epoch: int, *, rollout_rests: bool
) -> LendingDecision:
    """The next step of lending a replica to ``candidate``, whose state validation has just decided.

    Args:
        epoch: fences the requests to the agents.
        rollout_rests: no roll goes on, begins or ends with this look.
    """
    borrower = candidate if rollout_rests and _needs_replica(observed, candidate) else None
    holder = _pod_withdrawn_for(observed, borrower)
    others = tuple(loan for view in observed.pods if view is not holder for loan in _take_back(view, epoch))
    if borrower is None:
        return LendingDecision(candidate, others)
    if holder is not None and holder.name != borrower.pod:
        borrower = borrower.model_copy(update=_measuring_on(holder))
    if any((job.version, job.attempt) == (borrower.version, borrower.attempt) for job in observed.jobs):
        # The Job renews the lease, and fails when the lease is lost.
        return LendingDecision(borrower, (*others, *_take_back(holder, epoch)) if _missed(observed, holder) else others)
    if holder is not None:
        return _withdrawn_without_job(observed, borrower, holder, others, epoch)
    return _withdraw(observed, borrower, others, epoch)


def _withdrawn_without_job(
    observed: Observed, borrower: CandidateStatus, holder: PodView, others: tuple[Loan, ...], epoch: int
) -> LendingDecision:
    """The pod is withdrawn and the Job does not exist yet: create the Job, or take the pod back."""
    if reason := _missed(observed, holder) or _template_changing(observed):
        return LendingDecision(_waiting(borrower, reason), (*others, *_take_back(holder, epoch)))
    returning = holder.measurement is not None and holder.measurement.phase is MeasurementPhase.RETURNING
    has_left_service = bool(holder.ip) and not holder.ready and not returning
    return LendingDecision(borrower, others, holder if has_left_service else None)


def _withdraw(observed: Observed, borrower: CandidateStatus, others: tuple[Loan, ...], epoch: int) -> LendingDecision:
    """Withdraw the pod that the status names, or choose one, unless no pod can be spared."""
    if reason := obstacle(observed):
        return LendingDecision(_waiting(borrower, reason), others)
    views = sorted((view for view in observed.pods if not view.terminating), key=lambda view: view.name)
    chosen = next((view for view in views if view.name == borrower.pod), views[-1])
    loan = _loan(chosen, borrower.job or "", epoch, lease_seconds=LEASE_SECONDS)
    return LendingDecision(borrower.model_copy(update=_measuring_on(chosen)), (*others, loan))


def _waiting(borrower: CandidateStatus, reason: str) -> CandidateStatus:
    return borrower.model_copy(update={"pod": None, "message": f"waiting for a replica: {reason}"})


def _measuring_on(view: PodView) -> dict[str, str]:
    return {"pod": view.name, "message": f"measuring on the replica {view.name}, which has left the Service"}


def _pod_withdrawn_for(observed: Observed, borrower: CandidateStatus | None) -> PodView | None:
    """The pod that is withdrawn for ``borrower``: the one in the status first, any when the status was lost."""
    if borrower is None:
        return None
    views = [v for v in observed.pods if v.measurement is not None and v.measurement.measurement == borrower.job]
    return next((view for view in views if view.name == borrower.pod), views[0] if views else None)


def _needs_replica(observed: Observed, candidate: CandidateStatus | None) -> bool:
    validating = candidate is not None and candidate.phase is CandidatePhase.VALIDATING
    on_replica = observed.spec.validation.measure_on is MeasureOn.REPLICA
    return validating and on_replica and observed.spec.rollout.pin is None


def _loan(view: PodView, measurement: str, epoch: int, *, lease_seconds: int) -> Loan:
    begin = lease_seconds > 0
    request = MeasurementRequest(measurement=measurement, epoch=epoch, lease_seconds=lease_seconds, begin=begin)
    return Loan(view.name, view.ip, request)


def _take_back(view: PodView | None, epoch: int) -> tuple[Loan, ...]:
    """The request that takes ``view`` back, if the pod is withdrawn and not on its way back already."""
    measurement = view.measurement if view is not None else None
    if view is None or measurement is None or measurement.phase is MeasurementPhase.RETURNING:
        return ()
    return (_loan(view, measurement.measurement, epoch, lease_seconds=0),)


def _missed(observed: Observed, holder: PodView | None) -> str:
    """Why the lent pod has to serve again; empty when it can be spared."""
    serving = sum(view.ready and not view.terminating for view in observed.pods if view is not holder)
    others = observed.spec.serving.replicas - 1
    return "" if serving >= others else f"{serving} of the {others} other pods are ready"


def _template_changing(observed: Observed) -> str:
    """Why pods must not be measured on now; empty when all have the current template.

    A pod of another template would be measured with former settings, and the result reported for the present ones.
    """
    current = observed.deployment is not None and observed.deployment.current
    return "" if current else "pods of the current template are being started"


def obstacle(observed: Observed) -> str:
    """Why no replica may be withdrawn now; empty when one may."""
    wanted, channel = observed.spec.serving.replicas, observed.store.channel
    views = [view for view in observed.pods if not view.terminating]
    if wanted < 2:
        return "serving.replicas is below 2, and one has to go on serving"
    if reason := _template_changing(observed):
        return reason
    if lent := sorted(away(observed)):
        return f"{', '.join(lent)} is not back yet"
    ready = [view for view in views if view.ready and view.ip and view.agent is not None and view.agent.engine_ready]
    if len(ready) < wanted or len(views) != wanted:
        return f"{len(ready)} of {wanted} pods are ready"
    active = [
        view
        for view in ready
        if channel is not None and view.agent is not None and view.agent.version == channel.active
    ]
    if len(active) < wanted:
        return f"{len(active)} of {wanted} pods serve the active version"
    if not observed.disruptions_allowed:
        return "the PodDisruptionBudget allows no disruption now"
    return ""
