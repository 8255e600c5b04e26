"""The agent's HTTP API (``agent_api``): probes and metrics are open, the rest needs the agent's token."""

from __future__ import annotations

import contextlib
import hmac
from collections.abc import Awaitable, Callable, Iterator

from aiohttp import web
from aiohttp.typedefs import Middleware

from aurora_protocol.agent_api import MeasurementRequest, SwapRequest, TrialRequest
from aurora_protocol.errors import InvalidRecord
from aurora_runtime.errors import RuntimeFault, SwapRefused
from aurora_runtime.serving.agent.measurement import MeasurementLease
from aurora_runtime.serving.agent.metrics import Metrics
from aurora_runtime.serving.agent.pod_state import Pod
from aurora_runtime.serving.agent.swapper import Swapper
from aurora_store.errors import StoreError

OPEN = frozenset({"/healthz", "/readyz", "/metrics"})
BODY_LIMIT = 64 << 10
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def authorize(token: str) -> Middleware:
    """A middleware that lets the open routes pass and demands ``Bearer token`` elsewhere, compared in constant time."""
    expected = f"Bearer {token}".encode()

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").encode()
        if request.path not in OPEN and not hmac.compare_digest(given, expected):
            raise web.HTTPUnauthorized(text="a bearer token is needed\n")
        return await handler(request)

    return check


@contextlib.contextmanager
def _answered() -> Iterator[None]:
    """Our faults as the statuses that the contract names."""
    try:
        yield
    except InvalidRecord as error:
        raise web.HTTPBadRequest(text=f"{error}\n") from error
    except SwapRefused as error:
        raise web.HTTPConflict(text=f"{error}\n") from error
    except (RuntimeFault, StoreError) as error:
        raise web.HTTPServiceUnavailable(text=f"{error}\n") from error


def application(
    pod: Pod, swapper: Swapper, measuring: MeasurementLease, metrics: Metrics, token: str
) -> web.Application:
    """The application; ``token`` must not be empty."""
    if not token:
        raise ValueError("the agent's token is empty")

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        ready = await pod.ready()
        return web.Response(status=200 if ready else 503, text="ok\n" if ready else "the engine is not ready\n")

    async def scrape(_: web.Request) -> web.Response:
        return web.Response(body=metrics.render(await pod.state()), content_type="text/plain", charset="utf-8")

    async def state(_: web.Request) -> web.Response:
        return web.Response(body=(await pod.state()).to_json(), content_type="application/json")

    async def put_draft(request: web.Request) -> web.Response:
        with _answered():
            wish = SwapRequest.from_json(await request.read())
            await pod.ready()  # takes a new engine over, should no probe have done so yet
            await swapper.request(wish)
        return await told(202)

    async def put_measurement(request: web.Request) -> web.Response:
        with _answered():
            wish = MeasurementRequest.from_json(await request.read())
            await pod.ready()
            await measuring.order(wish)
        return await told(202)

    async def put_trial(request: web.Request) -> web.Response:
        with _answered():
            held = await measuring.trial(TrialRequest.from_json(await request.read()))
        return await told(200 if held else 202)

    async def told(status: int) -> web.Response:
        return web.Response(status=status, body=(await pod.state()).to_json(), content_type="application/json")

    app = web.Application(middlewares=[authorize(token)], client_max_size=BODY_LIMIT)
    app.add_routes(
        [
            web.get("/healthz", healthz),
            web.get("/readyz", readyz),
            web.get("/metrics", scrape),
            web.get("/v1/state", state),
            web.put("/v1/draft", put_draft),
            web.put("/v1/measurement", put_measurement),
            web.put("/v1/measurement/trial", put_trial),
        ]
    )
    return app
