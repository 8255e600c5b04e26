"""Answers the challenges of other installations (see ``contest``), in tasks of their own.

Why not in the reconcile: a reconcile may wait minutes for a slow store, and after a restart it waits for its turn. An
answer that comes too late costs the speculator.

Invariants: only a status that names this installation is answered. The resourceVersion makes sure that it still does.
A speculator has at most one answer under way, and that one says what this installation does now. The answers of one
namespace have at most :data:`CALLS_PER_NAMESPACE` calls of the API server under way, as its reconciles have a limit of
their own (``reconcile_slots``). They do not share one, so that an answer waits for no reconcile.
"""

from __future__ import annotations

import asyncio
import logging
import math
from contextvars import Context
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from weakref import WeakValueDictionary

from aurora_operator.act.status_writer import patch_status
from aurora_operator.errors import Conflict, KubernetesError, NotFound, NotLeading
from aurora_operator.io_pools import call_api
from aurora_operator.kubernetes_api import SPECULATOR, KubernetesApi, Object
from aurora_operator.observe.cluster_cache import revision_of
from aurora_operator.observe.stored_resource import owner_of, status_of

log = logging.getLogger(__name__)

MIN_RETRY_SECONDS, MAX_RETRY_SECONDS = 0.2, 15.0
CALLS_PER_NAMESPACE = 8
"""Enough to keep up with a newcomer, whose reconciles ask in at most 12 calls at once."""


@dataclass
class _Answer:
    """One that is under way."""

    acts: bool
    newest: Object
    """The speculator as it was seen last. A challenge in it may be newer than the one that is answered."""
    task: asyncio.Task[float] = field(init=False)


class ChallengeAnswers:
    """The answers of this process that are under way."""

    def __init__(self, api: KubernetesApi, installation: str) -> None:
        self._api, self._installation = api, installation
        self._under_way: dict[str, _Answer] = {}
        """By the speculator's uid."""
        self._turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        """By namespace."""

    def look(self, stored: Object, *, acts: bool) -> None:
        """Begin an answer if the status of ``stored`` demands one. Does not wait for the answer.

        Args:
            acts: this installation acts in the speculator's namespace. Otherwise the speculator is given up: the name
                in its status is removed, and another installation takes the speculator over at once. An answer that
                says the opposite ends.
        """
        uid = stored["metadata"]["uid"]
        under_way = self._under_way.get(uid)
        if under_way is not None and under_way.acts == acts:
            under_way.newest = stored
            return
        self.end(uid)
        if self._reply(stored, acts=acts):
            self._begin(stored, uid, acts=acts)

    def end(self, uid: str) -> None:
        """Cancel the answer about a speculator, if one is under way."""
        under_way = self._under_way.pop(uid, None)
        if under_way is not None:
            under_way.task.cancel()

    async def stop(self) -> None:
        """Cancel the answers that are under way."""
        tasks = [answer.task for answer in self._under_way.values()]
        self._under_way.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, stored: Object, uid: str, *, acts: bool) -> None:
        namespace, answer = stored["metadata"]["namespace"], _Answer(acts, stored)
        turns = self._turns.get(namespace)
        if turns is None:
            turns = self._turns[namespace] = asyncio.Semaphore(CALLS_PER_NAMESPACE)
        # A reconcile may call this. In a context of its own the task does not lend the slot of that reconcile.
        work = self._answer(stored, turns, acts=acts)
        answer.task = asyncio.create_task(work, name=f"answer {uid}", context=Context())
        answer.task.add_done_callback(lambda task: self._finish(uid, answer, task))
        self._under_way[uid] = answer

    def _finish(self, uid: str, answer: _Answer, task: asyncio.Task[float]) -> None:
        """Forget an answer that ended, and begin another one if a challenge came meanwhile."""
        if self._under_way.get(uid) is not answer:
            return  # it was cancelled
        del self._under_way[uid]
        if task.cancelled():
            return
        if (error := task.exception()) is not None:
            log.error("%s ended unexpectedly", task.get_name(), exc_info=error)
        elif revision_of(answer.newest) > task.result():
            self.look(answer.newest, acts=answer.acts)

    def _reply(self, stored: Object, *, acts: bool) -> dict[str, Any]:
        """The fields of the status to change. Empty: nobody asks us.

        It parses no status, because every change of a child comes by here.
        """
        status = stored.get("status") or {}
        if (status.get("operator") or {}).get("installation") != self._installation:
            return {}
        if not acts:
            return {"operator": None, "operatorChallenge": None}
        return {"operatorChallenge": None} if status.get("operatorChallenge") is not None else {}

    async def _answer(self, stored: Object, turns: asyncio.Semaphore, *, acts: bool) -> float:
        """Write until the answer is stored, or until none is demanded any more.

        Returns the resourceVersion up to which nothing is left to answer; infinite when there is no more to do.
        """
        metadata = stored["metadata"]
        name, namespace, uid = metadata["name"], metadata["namespace"], metadata["uid"]
        challenge, failed, pause_seconds = status_of(stored).operator_challenge, False, MIN_RETRY_SECONDS
        while reply := self._reply(stored, acts=acts):
            try:
                async with turns:
                    written = await call_api(patch_status, self._api, owner_of(stored), reply)
            except (NotFound, NotLeading):
                return math.inf
            except KubernetesError as error:
                if not isinstance(error, Conflict) and not failed:
                    failed = True
                    log.warning("%s/%s: another installation gets no answer yet: %s", namespace, name, error)
            else:
                what = f"answered {challenge}" if acts else "given up, because this operator does not act here"
                log.info("%s/%s: %s", namespace, name, what)
                return revision_of(written)
            await asyncio.sleep(pause_seconds)
            pause_seconds = min(2 * pause_seconds, MAX_RETRY_SECONDS)
            try:
                async with turns:
                    stored = await call_api(self._api.get, SPECULATOR, namespace, name)
            except NotFound:
                return math.inf
            except KubernetesError as error:
                if error.status == HTTPStatus.FORBIDDEN:
                    return math.inf  # we lost our rights there, so what we know is out of date
                continue
            if stored["metadata"]["uid"] != uid:
                return math.inf
        return revision_of(stored)
