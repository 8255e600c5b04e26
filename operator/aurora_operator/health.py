"""Answers Kubernetes' two probes of the operator's pod.

*Liveness* (``/healthz``) fails when a part of this process does not turn: Kubernetes then restarts the pod. *Readiness*
(``/readyz``) fails until the cache holds the cluster: an upgrade then keeps the former pods until the new pod could
lead.

Invariant: the answers come from the event loop in which the parts turn, so an event loop that hangs answers neither.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from aiohttp import web

MAX_PROBLEMS_SHOWN = 5


class HealthServer:
    """The HTTP server of the probes.

    Args:
        problems: a sentence about each part that does not turn.
        ready: whether the cache is complete.
    """

    def __init__(self, problems: Callable[[], Sequence[str]], ready: Callable[[], bool]) -> None:
        self._problems, self._ready = problems, ready
        application = web.Application()
        application.add_routes([web.get("/healthz", self._liveness), web.get("/readyz", self._readiness)])
        self._runner = web.AppRunner(application, access_log=None)

    async def start(self, port: int) -> None:
        """Listen on ``port`` of all addresses."""
        await self._runner.setup()
        await web.TCPSite(self._runner, "0.0.0.0", port).start()  # noqa: S104 - the kubelet calls the pod's address

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _liveness(self, _: web.Request) -> web.Response:
        problems = self._problems()
        if not problems:
            return web.Response(text="ok")
        more = len(problems) - MAX_PROBLEMS_SHOWN
        text = "; ".join(problems[:MAX_PROBLEMS_SHOWN]) + (f" and {more} more" if more > 0 else "")
        return web.Response(status=500, text=text)

    async def _readiness(self, _: web.Request) -> web.Response:
        if self._ready():
            return web.Response(text="ok")
        return web.Response(status=503, text="the cache does not hold the whole cluster yet")
