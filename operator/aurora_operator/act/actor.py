"""Executes plans.

Invariants:

- Every action is idempotent, and the order makes an interruption harmless (see ``Plan``).
- The status is written only over the version of the custom resource that was observed. When two operators write, or an
  operator and a user, the second write fails, and that operator observes again.
- No agent is asked for anything before the decision behind the request is in the status.
- Every write is fenced (uid, resourceVersion, the channel's epoch), so a replica that lost the Lease does no harm.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Iterator, Sequence
from dataclasses import dataclass

from aurora_operator.act.child_writer import ChildWriter
from aurora_operator.act.custom_resource import EventRecorder, write_status
from aurora_operator.children.supporting_objects import new_keys
from aurora_operator.kubernetes_api import KubernetesApi
from aurora_operator.observe.observed import RefusedJob
from aurora_operator.observe.observer import Snapshot
from aurora_operator.observe.store.store_access import StoreAccess
from aurora_operator.plan import Plan
from aurora_protocol.agent_api import AgentState
from aurora_protocol.agent_client import AgentClient
from aurora_protocol.errors import AgentError, Fenced

log = logging.getLogger(__name__)

ASK_AGAIN_SECONDS = 15.0
"""Least time between two requests of a pod for the same swap. A swap that fails may pause the engine's generation."""


@dataclass(frozen=True)
class ExecutionResult:
    """Facts about one execution that the next reconcile needs. The fields are those of ``Observed``."""

    refused_by_epoch: int = 0
    apply_errors: tuple[str, ...] = ()
    refused_job: RefusedJob | None = None
    name_taken: tuple[str, ...] = ()
    wrote_status: bool = False


@dataclass(frozen=True)
class _AgentRequest:
    """One call of an agent."""

    what: str
    epoch: int
    """The epoch that fences it."""
    call: Awaitable[AgentState]


class Actor:
    """Executes the plans of one speculator."""

    def __init__(self, api: KubernetesApi, agents: AgentClient, events: EventRecorder) -> None:
        self._api, self._events = api, events
        self._children = ChildWriter(api)
        self._agents = agents
        self._asked: dict[tuple[str, int, int], float] = {}
        """Pod, version and epoch of a swap -> when the pod was asked, in monotonic seconds."""

    async def act(self, plan: Plan, snapshot: Snapshot, store: StoreAccess) -> ExecutionResult:
        """Execute ``plan``, which was made from ``snapshot``.

        Raises :class:`Conflict` (observe again), :class:`KubernetesError`, :class:`StoreError`.
        """
        owner = snapshot.observed.owner
        keys = [new_keys(owner)] if plan.create_keys else []
        children = await self._children.write(owner, keys, plan.children, snapshot.live_children)
        scaled: tuple[str, ...] = ()
        if plan.scale is not None:
            scaled = await self._children.scale(owner, plan.scale, snapshot.live_children)
        if plan.advance is not None:
            await store.advance(plan.advance)
            log.info("%s: channel record %d: version %d is active", owner.full_name, plan.advance.epoch,
                     plan.advance.active)  # fmt: skip
        if plan.status is not None:
            await write_status(self._api, owner, plan.status)
        wanted_job = None if children.workloads_held else plan.job
        job = await self._children.write_jobs(owner, plan.delete_jobs, wanted_job, snapshot.live_children)
        refused_by_epoch = await _ask(owner.full_name, [*self._requests(plan, snapshot.agent_token)])
        for note in plan.notes:
            self._events.post(note, owner)
        return ExecutionResult(
            refused_by_epoch=refused_by_epoch,
            apply_errors=(*children.errors, *scaled, *job.errors),
            refused_job=job.refused,
            name_taken=(*children.name_taken, *job.name_taken),
            wrote_status=plan.status is not None,
        )

    def _requests(self, plan: Plan, token: str) -> Iterator[_AgentRequest]:
        now = time.monotonic()
        self._asked = {key: at for key, at in self._asked.items() if now - at < ASK_AGAIN_SECONDS}
        for swap in plan.swaps:
            key = (swap.pod, swap.request.version, swap.request.epoch)
            if self._asked.setdefault(key, now) < now:
                continue
            epoch, call = swap.request.epoch, self._agents.swap(swap.ip, token, swap.request)
            yield _AgentRequest(f"swap pod {swap.pod} to version {swap.request.version} (epoch {epoch})", epoch, call)
        for limit in plan.trace_limits:
            call = self._agents.limit_traces(limit.ip, token, limit.budget)
            yield _AgentRequest(f"limit the traces of pod {limit.pod}", 0, call)


async def _ask(speculator: str, requests: Sequence[_AgentRequest]) -> int:
    """Ask agents, all at once. One that does not answer holds up no other, and the next reconcile asks again.

    Returns the highest epoch that an agent refused its request for; 0: none did.
    """
    answers = await asyncio.gather(*(request.call for request in requests), return_exceptions=True)
    refused_for = 0
    for request, answer in zip(requests, answers, strict=True):
        if isinstance(answer, AgentError):
            log.warning("%s: could not %s: %s", speculator, request.what, answer)
            seen = (answer.epoch or 0) if isinstance(answer, Fenced) else 0
            refused_for = max(refused_for, seen if seen > request.epoch else 0)
        elif isinstance(answer, BaseException):
            raise answer
        else:
            log.info("%s: asked to %s", speculator, request.what)
    return refused_for
