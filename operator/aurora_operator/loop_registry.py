"""The loops of this process, one task per speculator.

Invariant: a speculator has at most one loop. A task holds no state that matters, so it may end and start at any time.
"""

from __future__ import annotations

import asyncio

from aurora_operator.fleet import Fleet
from aurora_operator.kubernetes_api import KubernetesApi
from aurora_operator.loop import SpeculatorLoop
from aurora_operator.operator_config import OperatorConfig
from aurora_operator.reconciler import Reconciler
from aurora_protocol.agent_client import AgentClient


class LoopRegistry:
    """Starts, wakes and stops the loops."""

    def __init__(self, api: KubernetesApi, agents: AgentClient, config: OperatorConfig) -> None:
        self._api, self._agents, self._config = api, agents, config
        self._fleet = Fleet()
        self._loops: dict[tuple[str, str], tuple[SpeculatorLoop, asyncio.Task[None]]] = {}

    def wake(self, namespace: str, name: str, *, start: bool = False) -> None:
        """Wake a speculator's loop. With ``start``, start one if there is none."""
        key = (namespace, name)
        known = self._loops.get(key)
        if known is not None and not known[1].done():
            known[0].wake()
        elif start:
            self._fleet.expect(key)
            reconciler = Reconciler(self._api, self._agents, self._config, self._fleet, namespace, name)
            loop = SpeculatorLoop(reconciler, namespace, name)
            task = asyncio.create_task(loop.run(), name=f"{namespace}/{name}")
            task.add_done_callback(lambda _: self._fleet.forget(key))
            self._loops[key] = (loop, task)

    async def stop(self) -> None:
        """Cancel all tasks. The next process continues a reconcile that is cut short."""
        tasks = [task for _, task in self._loops.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._loops.clear()
