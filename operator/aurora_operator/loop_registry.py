"""The loops of this process, one task per speculator.

Invariants: a speculator has at most one loop. Loops run only between :meth:`LoopRegistry.start` and
:meth:`LoopRegistry.stop`, which is while this process leads. A loop that ends leaves nothing behind. A task holds no
state that matters, so it may end and start at any time. With a shard, loops run only in the shard's namespaces, and a
namespace that leaves the shard is given up at once. No loop runs in a namespace whose objects the API server refuses to
list, because a loop must not act on what it cannot see. Another installation's challenge waits for no loop. It gets no
answer where no loop may run, so that the other installation takes over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

from aurora_operator import metrics
from aurora_operator.act.authority import Authority
from aurora_operator.fleet import Fleet
from aurora_operator.kubernetes_api import NAMESPACE, SPECULATOR, KubernetesApi
from aurora_operator.loop import MAX_RECONCILE_SECONDS, SpeculatorLoop
from aurora_operator.metrics.speculator_figures import FIGURES
from aurora_operator.observe.cluster_cache import ClusterCache, SpeculatorKey
from aurora_operator.operator_config import OperatorConfig
from aurora_operator.reconcile_slots import ReconcileSlots
from aurora_operator.reconciler import Reconciler
from aurora_protocol.agent_client import AgentClient

log = logging.getLogger(__name__)


class LoopRegistry:
    """Starts, wakes and stops the loops."""

    def __init__(
        self,
        api: KubernetesApi,
        cache: ClusterCache,
        agents: AgentClient,
        config: OperatorConfig,
        authority: Authority,
    ) -> None:
        self._api, self._cache, self._agents, self._config, self._authority = api, cache, agents, config, authority
        self._loops: dict[SpeculatorKey, tuple[SpeculatorLoop, asyncio.Task[None]]] = {}
        self._fleet = Fleet()
        self._slots = ReconcileSlots()
        self._started = False

    def start(self) -> None:
        """Run a loop for each speculator in the cache, and from now on for each one that is created."""
        self._started = True
        for key in self._cache.speculators():
            self._run(key)
        log.info("%d speculators", len(self._loops))

    def wake(self, namespace: str, name: str) -> None:
        """Wake a speculator's loop, because one of its objects changed. A new speculator gets a loop.

        An empty ``name``: the namespace joined this operator's shard or left it, or its objects can be read again or no
        longer.
        """
        if not name:
            self._follow_namespace(namespace)
            return
        known = self._loops.get((namespace, name))
        if self._started:
            self._answer((namespace, name))
        if known is not None:
            known[0].wake()
        elif self._started:
            self._run((namespace, name))

    def overdue(self) -> Iterator[str]:
        """A sentence about each loop that has not gone on for too long."""
        if self._slots.stalled_seconds > MAX_RECONCILE_SECONDS:
            yield f"no reconcile could begin for {self._slots.stalled_seconds:.0f} s"
        for (namespace, name), (loop, _) in self._loops.items():
            if loop.overdue_seconds > 0:
                yield f"the loop of {namespace}/{name} is overdue by {loop.overdue_seconds:.0f} s"

    def __len__(self) -> int:
        return len(self._loops)

    async def stop(self) -> None:
        """Cancel all tasks. The next leader continues a reconcile that is cut short."""
        self._started = False
        tasks = [task for _, task in self._loops.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._authority.stop()

    def _answer(self, key: SpeculatorKey) -> None:
        """Let another installation know that this one acts on a speculator, or that it does not act there any more."""
        stored, in_shard = self._cache.get(SPECULATOR.kind, *key), self._in_shard(key[0])
        if stored is None:
            return
        if in_shard and not self._cache.readable(key[0]):
            self._authority.leave_unanswered(stored)
        else:
            self._authority.answer(stored, acts=in_shard)

    def _acts_in(self, namespace: str) -> bool:
        return self._cache.readable(namespace) and self._in_shard(namespace)

    def _in_shard(self, namespace: str) -> bool:
        return not self._config.shard or self._cache.get(NAMESPACE.kind, "", namespace) is not None

    def _follow_namespace(self, namespace: str) -> None:
        """Start or stop the loops of a namespace in which this operator begins or ceases to act."""
        for key in self._cache.speculators_in(namespace):
            known = self._loops.get(key)
            if not self._acts_in(namespace):
                self._authority.forget(*key)
                if known is not None:
                    known[1].cancel()
                if self._started:
                    self._answer(key)
            elif known is None and self._started:
                self._run(key)

    def _run(self, key: SpeculatorKey) -> None:
        self._answer(key)
        if not self._acts_in(key[0]):
            return
        reconciler = Reconciler(self._api, self._cache, self._agents, self._config, self._fleet, self._authority, key)
        if reconciler.is_gone():
            return
        self._fleet.expect(key)
        loop = SpeculatorLoop(reconciler, self._slots, *key)
        task = asyncio.create_task(loop.run(), name="/".join(key))
        self._loops[key] = (loop, task)
        task.add_done_callback(lambda ended: self._free(key, ended))

    def _free(self, key: SpeculatorKey, task: asyncio.Task[None]) -> None:
        """Forget a loop that ended. A speculator that was created again under the same name gets a new one."""
        del self._loops[key]
        self._fleet.forget(key)
        metrics.forget(*key)
        FIGURES.forget(*key)
        if not task.cancelled():
            self._authority.forget(*key)
            if (error := task.exception()) is not None:
                log.error("the loop of %s/%s ended unexpectedly", *key, exc_info=error)
        if self._started:
            self._run(key)
