"""The agent's HTTP API (:mod:`aurora_protocol.agent_api`). Metrics are open, the rest needs the token."""

from __future__ import annotations

import contextlib
import hmac
from collections.abc import Awaitable, Callable, Iterator

from aiohttp import web
from aiohttp.typedefs import Middleware

from aurora_protocol.agent_api import MeasurementRequest, Refusal, SwapRequest, TraceBudget, TrialRequest
from aurora_protocol.errors import InvalidRecord
from aurora_runtime.errors import RuntimeFault, SwapRefused
from aurora_runtime.serving.agent.lending import MeasurementLease
from aurora_runtime.serving.agent.metrics import Metrics
from aurora_runtime.serving.agent.pod_observer import PodObserver
from aurora_runtime.serving.agent.swapper import Swapper
from aurora_store.errors import StoreError

OPEN_ROUTES = frozenset({"/metrics"})
MAX_BODY_BYTES = 64 << 10
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def authorize(read_token: Callable[[], str]) -> Middleware:
    """Middleware that demands the agents' token except on the open routes. Compares in constant time.

    The kubelet replaces the mounted file after the Secret was made anew. An agent that kept its first token would
    refuse the operator until its pod ends. So the file, which lies in memory, is read for every request.
    """

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        # The header may hold any bytes, which aiohttp gives as surrogates where they are no text.
        given = request.headers.get("Authorization", "").encode(errors="surrogateescape")
        if request.path not in OPEN_ROUTES:
            token = read_token()
            if not token or not hmac.compare_digest(given, f"Bearer {token}".encode()):
                raise web.HTTPUnauthorized(text="this route needs the agent's bearer token\n")
        return await handler(request)

    return check


@contextlib.contextmanager
def _faults_as_statuses(swapper: Swapper) -> Iterator[None]:
    """Turn our errors into the statuses that the API names. A conflict names the epoch of the last accepted order."""
    try:
        yield
    except InvalidRecord as error:
        raise web.HTTPBadRequest(text=f"{error}\n") from error
    except SwapRefused as error:
        last = swapper.last_request()
        refusal = Refusal(reason=str(error)[:1000], epoch=last.epoch if last else None)
        raise web.HTTPConflict(text=refusal.to_json().decode(), content_type="application/json") from error
    except (RuntimeFault, StoreError) as error:
        raise web.HTTPServiceUnavailable(text=f"{error}\n") from error


def application(
    pod: PodObserver,
    swapper: Swapper,
    lease: MeasurementLease,
    metrics: Metrics,
    read_token: Callable[[], str],
) -> web.Application:
    """The application that serves the API."""

    async def get_metrics(_: web.Request) -> web.Response:
        state = await pod.state()
        text = metrics.render(state, pod.speculation(state.boot), pod.capture_figures())
        return web.Response(body=text, content_type="text/plain", charset="utf-8")

    async def state_response(status: int) -> web.Response:
        return web.Response(status=status, body=(await pod.state()).to_json(), content_type="application/json")

    async def get_state(_: web.Request) -> web.Response:
        return await state_response(200)

    async def put_draft(request: web.Request) -> web.Response:
        with _faults_as_statuses(swapper):
            swap = SwapRequest.from_json(await request.read())
            await pod.recover()  # the loop may not have done so yet
            await swapper.request(swap)
        return await state_response(202)

    async def put_trace_budget(request: web.Request) -> web.Response:
        with _faults_as_statuses(swapper):
            await pod.limit_traces(TraceBudget.from_json(await request.read()))
        return await state_response(202)

    async def put_measurement(request: web.Request) -> web.Response:
        with _faults_as_statuses(swapper):
            measurement = MeasurementRequest.from_json(await request.read())
            await pod.recover()
            await lease.request(measurement)
        return await state_response(202)

    async def put_trial(request: web.Request) -> web.Response:
        with _faults_as_statuses(swapper):
            engine_is_ready = await lease.request_trial(TrialRequest.from_json(await request.read()))
        return await state_response(200 if engine_is_ready else 202)

    app = web.Application(middlewares=[authorize(read_token)], client_max_size=MAX_BODY_BYTES)
    app.add_routes(
        [
            web.get("/metrics", get_metrics),
            web.get("/v1/state", get_state),
            web.put("/v1/draft", put_draft),
            web.put("/v1/trace-budget", put_trace_budget),
            web.put("/v1/measurement", put_measurement),
            web.put("/v1/measurement/trial", put_trial),
        ]
    )
    return app
