"""Answers the challenges of other installations (see ``contest``), in tasks of their own.

Why not in the reconcile: a reconcile may wait minutes for a slow store, and after a restart it waits for its turn. An
answer that comes too late costs the speculator.

Invariant: only a status that names this installation is answered. The resourceVersion makes sure that it still does.
"""

from __future__ import annotations

import asyncio
import logging
from contextvars import Context
from typing import Any

from aurora_operator.act.status_writer import patch_status
from aurora_operator.errors import Conflict, KubernetesError, NotFound, NotLeading
from aurora_operator.io_pools import call_api
from aurora_operator.kubernetes_api import SPECULATOR, KubernetesApi, Object
from aurora_operator.observe.stored_resource import owner_of, status_of

log = logging.getLogger(__name__)

MIN_RETRY_SECONDS, MAX_RETRY_SECONDS = 0.2, 15.0


class ChallengeAnswers:
    """The answers of this process that are under way."""

    def __init__(self, api: KubernetesApi, installation: str) -> None:
        self._api, self._installation = api, installation
        self._tasks: dict[str, asyncio.Task[None]] = {}
        """By the speculator's uid."""

    def look(self, stored: Object, *, acts: bool) -> None:
        """Begin an answer if the status of ``stored`` demands one. Does not wait for the answer.

        Args:
            acts: this installation acts in the speculator's namespace. Otherwise the speculator is given up: the name
                in its status is removed, and another installation takes the speculator over at once.
        """
        uid = stored["metadata"]["uid"]
        if uid in self._tasks or not self._reply(stored, acts=acts):
            return
        # A reconcile may call this. In a context of its own the task does not lend the slot of that reconcile.
        work = self._answer(stored, acts=acts)
        task = asyncio.create_task(work, name=f"answer {uid}", context=Context())
        self._tasks[uid] = task
        task.add_done_callback(lambda _: self._tasks.pop(uid, None))

    async def stop(self) -> None:
        """Cancel the answers that are under way."""
        tasks = [*self._tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

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

    async def _answer(self, stored: Object, *, acts: bool) -> None:
        """Write until the answer is stored, or until none is demanded any more."""
        metadata = stored["metadata"]
        name, namespace, uid = metadata["name"], metadata["namespace"], metadata["uid"]
        challenge, failed, pause_seconds = status_of(stored).operator_challenge, False, MIN_RETRY_SECONDS
        while reply := self._reply(stored, acts=acts):
            try:
                await call_api(patch_status, self._api, owner_of(stored), reply)
            except (NotFound, NotLeading):
                return
            except KubernetesError as error:
                if not isinstance(error, Conflict) and not failed:
                    failed = True
                    log.warning("%s/%s: another installation gets no answer yet: %s", namespace, name, error)
            else:
                what = f"answered {challenge}" if acts else "given up, because this operator does not act here"
                log.info("%s/%s: %s", namespace, name, what)
                return
            await asyncio.sleep(pause_seconds)
            pause_seconds = min(2 * pause_seconds, MAX_RETRY_SECONDS)
            try:
                stored = await call_api(self._api.get, SPECULATOR, namespace, name)
            except NotFound:
                return
            except KubernetesError:
                continue
            if stored["metadata"]["uid"] != uid:
                return
