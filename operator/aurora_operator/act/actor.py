"""Executes plans.

Invariants:

- Every action is idempotent, and the order makes an interruption harmless (see ``Plan``).
- The status is written only over the version of the custom resource that was observed. When two operators write, or an
  operator and a user, the second write fails, and that operator observes again.
- No agent is asked for anything before the decision behind the request is in the status.
- Every write is fenced (uid, resourceVersion, the channel's epoch), so a replica that lost the Lease does no harm.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from aurora_operator.act.agent_requests import AgentRequests
from aurora_operator.act.child_writer import ChildWriter
from aurora_operator.act.custom_resource import write_status
from aurora_operator.act.event_recorder import EventRecorder
from aurora_operator.children.supporting_objects import new_keys
from aurora_operator.kubernetes_api import KubernetesApi
from aurora_operator.observe.observed import RefusedJob
from aurora_operator.observe.observer import Snapshot
from aurora_operator.observe.store.store_access import StoreAccess
from aurora_operator.plan import Plan
from aurora_protocol.agent_client import AgentClient

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExecutionResult:
    """Facts about one execution that the next reconcile needs. The fields are those of ``Observed``."""

    fencing_epoch: int = 0
    apply_errors: tuple[str, ...] = ()
    refused_job: RefusedJob | None = None
    name_taken: tuple[str, ...] = ()
    wrote_status: bool = False


class Actor:
    """Executes the plans of one speculator."""

    def __init__(self, api: KubernetesApi, agents: AgentClient, events: EventRecorder) -> None:
        self._api, self._events = api, events
        self._children = ChildWriter(api)
        self._agents = AgentRequests(agents)

    async def act(
        self,
        plan: Plan,
        snapshot: Snapshot,
        store: StoreAccess,
    ) -> ExecutionResult:
        """Execute ``plan``, which was made from ``snapshot``.

        Raises :class:`Conflict` (observe again), :class:`KubernetesError`, :class:`StoreError`.
        """
        owner = snapshot.observed.owner
        keys = [new_keys(owner)] if plan.create_keys else []
        children = await self._children.write(owner, keys, plan.children, snapshot.live_children)
        if plan.advance is not None:
            await store.advance(plan.advance)
            log.info("%s: channel record %d: version %d is active", owner.full_name, plan.advance.epoch,
                     plan.advance.active)  # fmt: skip
        if plan.status is not None:
            await write_status(self._api, owner, plan.status)
        wanted_job = None if children.workloads_held else plan.job
        job = await self._children.write_jobs(owner, plan.delete_jobs, wanted_job, snapshot.live_children)
        fencing_epoch = await self._agents.swap(plan.swaps, snapshot)
        # No replica leaves its Service for a Job that cannot be created yet. Replicas still return.
        no_job_yet = job.job_waits or children.workloads_held
        leases = [lease for lease in plan.leases if not (no_job_yet and lease.request.begin)]
        fencing_epoch = max(fencing_epoch, await self._agents.request_leases(leases, snapshot))
        for note in plan.notes:
            self._events.post(note, owner)
        return ExecutionResult(
            fencing_epoch=fencing_epoch,
            apply_errors=(*children.errors, *job.errors),
            refused_job=job.refused,
            name_taken=(*children.name_taken, *job.name_taken),
            wrote_status=plan.status is not None,
        )
