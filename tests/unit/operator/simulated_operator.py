"""An operator split into single actions, so that a second operator or a crash can come between any two of them.

The order of actions is that of :meth:`Actor.act`. Between observations it remembers the same facts as ``Reconciler``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial

from aurora_api.v1alpha1.status import SpeculatorStatus
from aurora_operator.errors import Conflict
from aurora_operator.observe.observed import Observed, RefusedJob, StoreView
from aurora_operator.plan import Plan, Swap, plan
from aurora_operator.reconciler import ObservedTime
from aurora_protocol.errors import AgentError, Fenced
from aurora_store.errors import ObjectExists, StoreError
from tests.unit.operator.simulation import SimulatedCluster, SimulatedJob, SimulatedStore
from tests.unit.operator.worlds import CONFIG, job_settings, observed, spec

OnAccepted = Callable[[Swap, Observed], None]


class SimulatedOperator:
    """Calls ``on_accepted`` with every swap that an agent accepted, and the observation behind it."""

    def __init__(self, cluster: SimulatedCluster, store: SimulatedStore, on_accepted: OnAccepted) -> None:
        self._cluster, self._store, self._on_accepted = cluster, store, on_accepted
        self.restart()

    def restart(self) -> None:
        """The process is replaced by a new one, which remembers nothing."""
        self._observed_time = ObservedTime()
        self._fencing_epoch = self._next_fencing_epoch = 0
        self._refused: RefusedJob | None = None
        self._next_refused: RefusedJob | None = None
        self._seen: Observed | None = None
        self.observed_version = 0
        self._actions: deque[Callable[[], None]] = deque()

    @property
    def has_observed(self) -> bool:
        """Whether the cluster was observed, and the store not yet."""
        return self._seen is not None

    @property
    def acting(self) -> bool:
        return bool(self._actions)

    def observe(self) -> None:
        """Observe the custom resource, the pods and the Jobs. The store is read last, possibly later."""
        self._actions.clear()
        self.observed_version = self._cluster.version
        given, pods = spec(**self._cluster.spec), self._cluster.pods
        # Pods appear and disappear by themselves here, so the wanted number is always the existing one.
        given = given.model_copy(update={"serving": given.serving.model_copy(update={"replicas": len(pods)})})
        self._seen = observed(
            spec=given,
            status=SpeculatorStatus.model_validate_json(self._cluster.status),
            pods=tuple(pod.view() for pod in pods),
            jobs=tuple(job.view(name) for name, job in self._cluster.jobs.items()),
            abort=self._cluster.annotations.get("abort"),
        )

    def decide(self, now: datetime, steady: float) -> tuple[Observed, Plan]:
        """Read the store and plan. The plan's actions are then pending."""
        assert self._seen is not None, "observe first"
        status, pin = self._seen.status, self._seen.spec.rollout.pin
        versions = status.versions() | (frozenset[int]() if pin is None else {pin})
        seen = replace(
            self._seen,
            store=_reported_now(self._store.view(versions), now),
            observation_gap=self._observed_time.has_gap(now, steady),
            refused_by_epoch=self._fencing_epoch,
            refused_job=self._refused,
        )
        self._seen = None
        made = plan(seen, CONFIG, now, timedelta.max)
        self._fencing_epoch, self._next_fencing_epoch = 0, 0
        self._refused = self._next_refused = None
        self._actions.extend(self._steps(seen, made))
        self._actions.append(lambda: self._done(now, steady, decided=seen.store.ok))
        return seen, made

    def act(self, count: int) -> None:
        """Execute the next ``count`` actions. After a lost race or a store error the rest is dropped."""
        for _ in range(count):
            if not self._actions:
                return
            try:
                self._actions.popleft()()
            except (Conflict, ObjectExists, StoreError):
                self._actions.clear()

    def _done(self, now: datetime, steady: float, *, decided: bool) -> None:
        self._observed_time.record(now, steady, decided=decided)
        self._fencing_epoch, self._refused = self._next_fencing_epoch, self._next_refused

    def _steps(self, seen: Observed, made: Plan) -> list[Callable[[], None]]:
        steps: list[Callable[[], None]] = []
        if made.advance is not None:
            steps.append(partial(self._store.advance, made.advance))
        if made.status is not None:
            text = made.status.model_dump_json(by_alias=True, exclude_none=True)
            steps.append(partial(self._cluster.write_status, text, self.observed_version))
        steps += [partial(self._delete, name) for name in made.delete_jobs]
        if made.job is not None:
            metadata, channel = made.job["metadata"], seen.store.channel
            assert channel is not None, "a Job is created only when there is an active version"
            labels = metadata["labels"]
            replica = job_settings(made.job).replica
            pod, epoch = (replica.pod, replica.epoch) if replica else ("", 0)
            version, attempt = int(labels["aurora.dev/version"]), int(labels["aurora.dev/attempt"])
            job = SimulatedJob(version, attempt, channel.active, pod=pod, epoch=epoch)
            steps.append(partial(self._create, metadata["name"], job))
        steps += [partial(self._swap, swap, seen) for swap in made.swaps]
        return steps

    def _create(self, name: str, job: SimulatedJob) -> None:
        if self._cluster.refuses_jobs and name not in self._cluster.jobs:
            self._next_refused = RefusedJob(name, "exceeded quota")
            return
        self._cluster.jobs.setdefault(name, job)

    def _delete(self, name: str) -> None:
        """Delete a Job, which gives its replica back."""
        self._cluster.jobs.pop(name, None)
        for pod in self._cluster.pods:
            pod.lease = 0.0 if pod.measurement == name else pod.lease

    def _swap(self, swap: Swap, seen: Observed) -> None:
        pod = next((pod for pod in self._cluster.pods if pod.name == swap.pod), None)
        if pod is None:
            return
        before = (pod.phase, pod.asked)
        try:
            pod.request(swap.request)
        except AgentError as error:
            self._refused_by_agent(error, swap.request.epoch)
            return
        if (pod.phase, pod.asked) != before:
            self._on_accepted(swap, seen)

    def _refused_by_agent(self, error: AgentError, sent: int) -> None:
        if isinstance(error, Fenced) and error.epoch is not None and error.epoch > sent:
            self._next_fencing_epoch = max(self._next_fencing_epoch, error.epoch)


def _reported_now(view: StoreView, now: datetime) -> StoreView:
    """``view`` with a trainer that is not silent."""
    trainer = None if view.trainer is None else view.trainer.model_copy(update={"updated": now})
    return replace(view, trainer=trainer)
