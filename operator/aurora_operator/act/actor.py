"""Does what a plan says. Every action is idempotent; the order makes an interruption harmless (see ``Plan``).

Invariants: the status is written only over the version of the custom resource that was looked at, so that of two
operators, or of an operator and a user who edits, one loses and looks again; nothing is asked of an agent before the
decision behind it is in the status.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from aurora_api import API_VERSION, KIND
from aurora_api.v1alpha1.status import SpeculatorStatus
from aurora_operator.agent_client import AgentClient
from aurora_operator.children.access import new_keys
from aurora_operator.children.owner import Owner
from aurora_operator.errors import AgentError, Conflict, Fenced, KubernetesError
from aurora_operator.kubernetes_api import JOB, KubernetesApi, Object
from aurora_operator.observe.observed import RefusedJob
from aurora_operator.observe.observer import Look
from aurora_operator.observe.store_reader import StoreReader
from aurora_operator.operator_config import FIELD_MANAGER
from aurora_operator.plan import Loan, Note, Plan, Swap

log = logging.getLogger(__name__)

_UNAVAILABLE = frozenset({0, 401, 429, 502, 503, 504})
"""The API server cannot answer now. Not 500: so it answers a template that has a number where text belongs."""

MAX_REFUSAL = 1000
"""Characters of a refusal that the status repeats: a webhook may say more than a condition holds."""


@dataclass(frozen=True)
class Outcome:
    """What the next look must know."""

    fenced: bool = False
    problems: tuple[str, ...] = ()
    refused_job: RefusedJob | None = None
    wrote_status: bool = False


class Actor:
    """Acts for one speculator. Remembers what it applied, so that an unchanged child costs no call."""

    def __init__(self, api: KubernetesApi, agents: AgentClient) -> None:
        self._api, self._agents = api, agents
        self._applied: dict[tuple[str, str], tuple[str, Any]] = {}

    async def act(self, plan: Plan, look: Look, records: StoreReader | None) -> Outcome:
        """Raises :class:`Conflict` (look again), :class:`KubernetesError`, :class:`StoreError`."""
        owner = look.observed.owner
        if plan.create_keys:
            await self._create(new_keys(owner))
        problems = [text for child in plan.children if (text := await self._apply(child, look))]
        if plan.advance is not None and records is not None:
            await asyncio.to_thread(records.advance, plan.advance)
            log.info("%s/%s: channel %d: version %d is active", owner.namespace, owner.name, plan.advance.epoch,
                     plan.advance.active)  # fmt: skip
        if plan.status is not None:
            await asyncio.to_thread(self._write_status, owner, plan.status)
        for name in plan.delete_jobs:
            await asyncio.to_thread(self._api.delete, JOB, owner.namespace, name)
        refused = None
        if plan.job is not None:
            refused, trouble = await self._order(plan.job)
            problems += trouble
        fenced = await self._swap(plan.swaps, look) | await self._lend(plan.loans, look)
        for note in plan.notes:
            await self._post(note, owner)
        return Outcome(fenced, tuple(problems), refused, plan.status is not None)

    async def _create(self, obj: Object) -> list[str]:
        try:
            await asyncio.to_thread(self._api.create, obj)
        except Conflict:
            return []
        except KubernetesError as error:
            return [_refusal(obj, error)]
        return []

    async def _order(self, job: Object) -> tuple[RefusedJob | None, list[str]]:
        """Create a Job. Its refusal is the measurement's affair: the candidate waits, and pods serve no worse."""
        try:
            await asyncio.to_thread(self._api.create, job)
        except Conflict:
            return None, []
        except KubernetesError as error:
            if error.status in _UNAVAILABLE:
                return None, [_refusal(job, error)]
            return RefusedJob(job["metadata"]["name"], str(error)[:MAX_REFUSAL]), []
        return None, []

    async def _apply(self, child: Object, look: Look) -> str:
        """Apply ``child`` unless it is as we left it; the API server's refusal in its own words, or nothing."""
        key = (child["kind"], child["metadata"]["name"])
        digest = hashlib.sha256(json.dumps(child, sort_keys=True).encode()).hexdigest()
        live = look.live.get(key)
        if live is not None and self._applied.get(key) == (digest, _mark(live)):
            return ""
        try:
            applied = await asyncio.to_thread(self._api.apply, child)
        except KubernetesError as error:
            if error.status in _UNAVAILABLE:
                raise
            return _refusal(child, error)
        self._applied[key] = (digest, _mark(applied))
        return ""

    def _write_status(self, owner: Owner, status: SpeculatorStatus) -> None:
        self._api.apply(
            {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "metadata": {
                    "name": owner.name,
                    "namespace": owner.namespace,
                    "uid": owner.uid,
                    "resourceVersion": owner.resource_version,
                },
                "status": status.model_dump(mode="json", by_alias=True, exclude_none=True),
            },
            subresource="status",
        )

    async def _swap(self, swaps: Sequence[Swap], look: Look) -> bool:
        """Ask all agents at once; whether one of them has seen a higher epoch."""
        answers = await asyncio.gather(
            *(self._agents.swap(swap.ip, look.token, swap.request) for swap in swaps), return_exceptions=True
        )
        where = f"{look.observed.owner.namespace}/{look.observed.owner.name}"
        fenced = False
        for swap, answer in zip(swaps, answers, strict=True):
            if isinstance(answer, AgentError):
                fenced |= isinstance(answer, Fenced)
                log.warning("%s: swap of %s to version %d: %s", where, swap.pod, swap.request.version, answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                log.info("%s: asked %s for version %d (epoch %d)", where, swap.pod, swap.request.version,
                         swap.request.epoch)  # fmt: skip
        return fenced

    async def _lend(self, loans: Sequence[Loan], look: Look) -> bool:
        """Withdraw pods and give them back; whether an agent refused because of its epoch."""
        where = f"{look.observed.owner.namespace}/{look.observed.owner.name}"
        fenced = False
        for loan in loans:
            what = f"{'withdrawing' if loan.request.begin else 'giving back'} {loan.pod}"
            try:
                await self._agents.measure(loan.ip, look.token, loan.request)
            except AgentError as error:
                fenced |= isinstance(error, Fenced)
                log.warning("%s: %s for %s: %s", where, what, loan.request.measurement, error)
            else:
                log.info("%s: %s for %s", where, what, loan.request.measurement)
        return fenced

    async def _post(self, note: Note, owner: Owner) -> None:
        """Post an Event; its name is a digest of what it says and of the hour, so that what flaps does not flood."""
        log.info("%s/%s: %s: %s", owner.namespace, owner.name, note.reason, note.message)
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        text = f"{owner.uid}/{owner.generation}/{note.reason}/{note.message}/{now[:13]}"
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "name": f"{owner.name}.{hashlib.sha256(text.encode()).hexdigest()[:16]}",
                "namespace": owner.namespace,
            },
            "involvedObject": {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "name": owner.name,
                "namespace": owner.namespace,
                "uid": owner.uid,
            },
            "type": "Warning" if note.warning else "Normal",
            "reason": note.reason,
            "message": note.message[:1024],
            "source": {"component": FIELD_MANAGER},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        for problem in await self._create(event):
            log.warning("%s", problem)


def _mark(obj: Object) -> Any:
    """Changes whenever somebody changes what we applied: the generation, or for kinds without one the version."""
    metadata = obj["metadata"]
    return (metadata["uid"], metadata.get("generation") or metadata["resourceVersion"])


def _refusal(obj: Object, error: KubernetesError) -> str:
    return f"{obj['kind']} {obj['metadata']['name']}: {error}"[:MAX_REFUSAL]
