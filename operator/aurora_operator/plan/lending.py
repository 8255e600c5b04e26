"""Which replica is lent to a measurement (``validation.measureOn: Replica``), and when it has to serve again. Pure.

The operator chooses the pod and creates the candidate's Job. The Job asks the pod's agent to take the pod out of the
Service, keeps the lease, and gives the pod back when it ends, whatever ends it. So the operator takes a pod back by
deleting the Job (``plan.candidate`` fails the attempt, ``plan.planner`` makes room for a roll).

A pod for which the cluster has no room may wait forever, so it neither delays a measurement nor ends one.

Invariants: a pod is lent only while nothing is rolled out, every wanted pod that has a place is ready and serves the
active version, another pod is left to serve, and the others have room for all requests. At most one pod is lent. When
another pod that has a place is not ready, or the other pods have no room any more, the pod serves again, measured or
not: service comes before measurements. So it does when there are more pods than wanted, because Kubernetes deletes pods
that are not ready first. A measurement on a pod that is being deleted goes on for as long as its engine does.
"""

from __future__ import annotations

from typing import Final

from aurora_api.v1alpha1.status import CandidatePhase, CandidateStatus
from aurora_operator.observe.observed import JobView, Observed, PodView

SPARED_SHARE: Final = 0.8
"""A replica is lent while the other pods would have at most this share of the requests that they can run."""


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


def lent_pod(observed: Observed, candidate: CandidateStatus, job: JobView | None) -> str | None:
    """Name of the pod that ``job``, that of ``candidate``, measures on. After a lost status, its withdrawal tells it.

    None: it has no Job, measures in the Job's own pod, or waits for a queue or a person without holding a pod.
    """
    held = (v.name for v in observed.pods if v.measurement and v.measurement.measurement == candidate.job)
    return None if job is None else next(held, None if job.suspended else candidate.pod)


def refusal_reason(observed: Observed) -> str:
    """Why no replica may be lent now; empty when :func:`chosen_pod` may be."""
    wanted, channel, views = _placed_pods(observed), observed.store.channel, _pods_with_node(observed)
    if observed.deployment is None or not observed.deployment.current:
        # A pod of another template would be measured with old settings, and the result reported for the current ones.
        return "pods of the current template are being started"
    if observed.spec.rollout.pin is not None:
        return "a version is pinned"
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


def chosen_pod(observed: Observed) -> PodView:
    """The pod to lend when there is no :func:`refusal_reason`: the last by name."""
    return max(_pods_with_node(observed), key=lambda view: view.name)


def recall_reason(observed: Observed, lent: str) -> str:
    """Why the pod ``lent`` has to serve again; empty when it can be spared."""
    placed, wanted = len(_pods_with_node(observed)), observed.spec.serving.replicas
    if placed > wanted:
        return f"{placed} pods run and {wanted} are wanted. Kubernetes deletes a pod that is not ready first"
    serving = sum(view.ready and not view.terminating for view in observed.pods if view.name != lent)
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
