"""Which replica is lent to a measurement (``validation.measureOn: Replica``), and when it goes back. Pure.

The pod is chosen in the status first, then withdrawn, and only when its agent says so the Job is created, which renews
the lease. Whatever is withdrawn and is not the measurement that is wanted now is given back, also after a lost status.

Invariants: a pod is withdrawn only while nothing is rolled out, every wanted pod is ready and serves the active
version, another one is left, and the disruption budget allows one more disruption; at most one pod is withdrawn; and it
is called back, measured or not, once another one is not ready: service comes before measurements.
"""

from __future__ import annotations

from dataclasses import dataclass

from aurora_api.v1alpha1.status import CandidatePhase, CandidateStatus
from aurora_api.v1alpha1.validation import MeasureOn
from aurora_operator.observe.observed import Observed, PodView
from aurora_operator.plan.actions import Loan
from aurora_protocol.agent_api import MeasurementPhase, MeasurementRequest

LEASE_SECONDS = 300
"""Time for the Job's pod to start; from then on it renews a shorter lease."""


@dataclass(frozen=True)
class Lending:
    """What is to be done about replicas for the sake of ``candidate``."""

    candidate: CandidateStatus | None
    loans: tuple[Loan, ...] = ()
    pod: PodView | None = None
    """The withdrawn pod that the candidate's Job may measure on; None: no Job may be created on a replica now."""


def away(observed: Observed) -> frozenset[str]:
    """Pods that are withdrawn, or were when their agent was last heard: they serve nobody, and no fault of theirs."""
    candidate = observed.status.candidate
    lent = candidate.pod if candidate is not None and candidate.phase is CandidatePhase.VALIDATING else None
    return frozenset(
        view.name
        for view in observed.pods
        if view.measurement is not None or (view.name == lent and view.agent is None and not view.terminating)
    )


def lend(observed: Observed, candidate: CandidateStatus | None, epoch: int, *, free: bool) -> Lending:
    """The next step of lending a replica to ``candidate``, which validation has just decided about.

    ``free``: no roll goes on, begins or ends with this look.
    """
    wanted = _wanted(observed, candidate) if free else None
    held = _holder(observed, wanted)
    back = tuple(loan for view in observed.pods if view is not held for loan in _recalled(view, epoch))
    if wanted is None:
        return Lending(candidate, back)
    if held is not None and held.name != wanted.pod:
        wanted = wanted.model_copy(update=_on(held))
    needed = _needed(observed, held)
    recall = _recalled(held, epoch)
    if any((job.version, job.attempt) == (wanted.version, wanted.attempt) for job in observed.jobs):
        return Lending(wanted, (*back, *recall) if needed else back)  # it renews the lease, and fails when that is lost
    if held is not None and held.measurement is not None:
        if why := needed or _updating(observed):
            waits = wanted.model_copy(update={"pod": None, "message": f"waits for a replica: {why}"})
            return Lending(waits, (*back, *recall))
        left = held.ip and not held.ready and held.measurement.phase is not MeasurementPhase.RETURNING
        return Lending(wanted, back, held if left else None)
    if why := obstacle(observed):
        return Lending(wanted.model_copy(update={"pod": None, "message": f"waits for a replica: {why}"}), back)
    views = sorted((view for view in observed.pods if not view.terminating), key=lambda view: view.name)
    chosen = next((view for view in views if view.name == wanted.pod), views[-1])
    loan = _loan(chosen, wanted.job or "", epoch, lease=LEASE_SECONDS)
    return Lending(wanted.model_copy(update=_on(chosen)), (*back, loan))


def _on(view: PodView) -> dict[str, str]:
    return {"pod": view.name, "message": f"measuring on the replica {view.name}, which has left the Service"}


def _holder(observed: Observed, wanted: CandidateStatus | None) -> PodView | None:
    """The pod that is withdrawn for ``wanted``: the one in the status first, any when the status was lost."""
    if wanted is None:
        return None
    for_it = [v for v in observed.pods if v.measurement is not None and v.measurement.measurement == wanted.job]
    return next((view for view in for_it if view.name == wanted.pod), for_it[0] if for_it else None)


def _wanted(observed: Observed, candidate: CandidateStatus | None) -> CandidateStatus | None:
    """The candidate, while a replica is to be lent to it."""
    if candidate is None or candidate.phase is not CandidatePhase.VALIDATING:
        return None
    if observed.spec.rollout.pin is not None:
        return None
    return candidate if observed.spec.validation.measure_on is MeasureOn.REPLICA else None


def _loan(view: PodView, measurement: str, epoch: int, *, lease: int) -> Loan:
    request = MeasurementRequest(measurement=measurement, epoch=max(epoch, 1), lease_seconds=lease, begin=lease > 0)
    return Loan(view.name, view.ip, request)


def _recalled(view: PodView | None, epoch: int) -> tuple[Loan, ...]:
    """What brings ``view`` back, if it is away and not on its way already."""
    found = view.measurement if view is not None else None
    if view is None or found is None or found.phase is MeasurementPhase.RETURNING:
        return ()
    return (_loan(view, found.measurement, epoch, lease=0),)


def _needed(observed: Observed, held: PodView | None) -> str:
    """Why the pod that is lent has to serve again; empty when it can be spared."""
    serving = sum(view.ready and not view.terminating for view in observed.pods if view is not held)
    others = observed.spec.serving.replicas - 1
    return "" if serving >= others else f"{serving} of the {others} other pods are ready"


def _updating(observed: Observed) -> str:
    """A pod of another template is no place to measure: what is found would be told of the settings of now."""
    current = observed.deployment is not None and observed.deployment.current
    return "" if current else "pods of the current template are being started"


def obstacle(observed: Observed) -> str:
    """Why no replica may be withdrawn now, in plain words; empty when one may."""
    wanted, channel = observed.spec.serving.replicas, observed.store.channel
    views = [view for view in observed.pods if not view.terminating]
    if wanted < 2:
        return "serving.replicas is below 2, and one has to go on serving"
    if why := _updating(observed):
        return why
    if lent := sorted(away(observed)):
        return f"{', '.join(lent)} is not back yet"
    ready = [view for view in views if view.ready and view.ip and view.agent is not None and view.agent.engine_ready]
    if len(ready) < wanted or len(views) != wanted:
        return f"{len(ready)} of {wanted} pods are ready"
    settled = [
        view
        for view in ready
        if channel is not None and view.agent is not None and view.agent.version == channel.active
    ]
    if len(settled) < wanted:
        return f"{len(settled)} of {wanted} pods serve the active version"
    if not observed.disruptions_allowed:
        return "the PodDisruptionBudget allows no disruption now"
    return ""
