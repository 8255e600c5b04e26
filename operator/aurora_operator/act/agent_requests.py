"""Sends a plan's requests to the agents: swaps, and the start and end of a replica's lending.

Invariant: an agent that does not answer never holds up the others. The next reconcile repeats the request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from aurora_operator.observe.observer import Snapshot
from aurora_operator.plan import LeaseRequest, Swap
from aurora_protocol.agent_api import AgentState
from aurora_protocol.agent_client import AgentClient
from aurora_protocol.errors import AgentError, Fenced

log = logging.getLogger(__name__)


class AgentRequests:
    """Requests to the agents of one speculator."""

    def __init__(self, agents: AgentClient) -> None:
        self._agents = agents

    async def swap(self, swaps: Sequence[Swap], snapshot: Snapshot) -> int:
        """Ask all pods at once to swap. Returns the highest epoch that an agent refused a request for; 0: none did."""
        answers = await self._answers(swaps, snapshot.agent_token)
        speculator = snapshot.observed.owner.full_name
        fencing_epoch = 0
        for swap, answer in zip(swaps, answers, strict=True):
            request = swap.request
            if isinstance(answer, AgentError):
                fencing_epoch = max(fencing_epoch, _fencing_epoch(answer, request.epoch))
                log.warning("%s: pod %s was not asked to swap to version %d: %s", speculator, swap.pod,
                            request.version, answer)  # fmt: skip
            elif isinstance(answer, BaseException):
                raise answer
            else:
                log.info("%s: asked pod %s to swap to version %d (epoch %d)", speculator, swap.pod, request.version,
                         request.epoch)  # fmt: skip
        return fencing_epoch

    async def _answers(self, swaps: Sequence[Swap], token: str) -> list[AgentState | BaseException]:
        """The agents' answers, or the errors that took their place, in the order of ``swaps``."""
        requests = (self._agents.swap(swap.ip, token, swap.request) for swap in swaps)
        return await asyncio.gather(*requests, return_exceptions=True)

    async def request_leases(self, leases: Sequence[LeaseRequest], snapshot: Snapshot) -> int:
        """Withdraw pods from the Service and return them. Returns the same epoch as :meth:`swap`."""
        speculator = snapshot.observed.owner.full_name
        fencing_epoch = 0
        for lease in leases:
            action = "withdraw" if lease.request.begin else "return"
            measurement = lease.request.measurement
            try:
                await self._agents.lease(lease.ip, snapshot.agent_token, lease.request)
            except AgentError as error:
                fencing_epoch = max(fencing_epoch, _fencing_epoch(error, lease.request.epoch))
                log.warning("%s: could not %s pod %s for %s: %s", speculator, action, lease.pod, measurement, error)
            else:
                log.info("%s: asked pod %s to %s for %s", speculator, lease.pod, action, measurement)
        return fencing_epoch


def _fencing_epoch(error: AgentError, sent: int) -> int:
    """The higher epoch than ``sent`` that the agent has seen. 0: the call failed for another reason."""
    seen = (error.epoch or 0) if isinstance(error, Fenced) else 0
    return seen if seen > sent else 0
