"""A pod's agent behind its real HTTP server on loopback, and mutated requests to it.

Invariants that :meth:`FuzzedAgent.attack` checks: the server answers or closes the connection in time, and no handler
raises. A request without the token, with an older epoch or with too large a body changes nothing. The agent answers a
probe after each request.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiohttp import ClientSession, web

from aurora_protocol.agent_api import MeasurementRequest, TrialRequest
from aurora_protocol.record import Record
from aurora_runtime.engine.sglang_client import SGLangClient
from aurora_runtime.serving.agent.http_api import MAX_BODY_BYTES, application
from aurora_runtime.serving.agent.lending import MeasurementLease
from aurora_runtime.serving.agent.metrics import Metrics
from aurora_runtime.serving.agent.pod_observer import PodObserver
from aurora_runtime.serving.agent.uploader import Uploader
from aurora_runtime.serving.pod_files import EngineState, write_atomically
from tests.fuzz.mutations import VALUES, mutated_bytes, mutated_json
from tests.unit.fakes import KEY
from tests.unit.serving.agent.rigs import JOB, TOKEN, Rig

ANSWER_SECONDS = 20.0
"""Longest time for an answer. Far above what an answer takes on a busy machine."""
PATIENCE_SECONDS = 0.5
FIRST_EPOCH = 1000
ORDER_ROUTES = ("/v1/draft", "/v1/measurement", "/v1/measurement/trial")
ROUTES = (*ORDER_ROUTES, "/v1/state", "/metrics", "/v1", "/", "//v1/draft", "/v1/draft/", "*")
METHODS = ("PUT", "GET", "POST", "HEAD", "DELETE", "OPTIONS", "CONNECT", "put", "\u00ff")
HEADERS = (
    b"Content-Length: 5",
    b"Content-Length: -1",
    b"Content-Length: 99999999999999999999",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: gzip",
    b"Content-Encoding: gzip",
    b"Content-Encoding: br",
    b"Expect: 100-continue",
    b"Expect: nonsense",
    b"Content-Type: multipart/form-data; boundary=",
    b"Content-Type: \xff/\xfe; charset=\xfd",
    b"Upgrade: websocket",
    b"Host: ",
    b"X: " + b"a" * 60_000,
    b"no colon",
    b"Cookie: " + b"a=b;" * 5_000,
)
STRANGERS = (
    b"",
    b"Bearer",
    b"Bearer ",
    b"Bearer x",
    b"Basic " + TOKEN.encode(),
    b"bearer " + TOKEN.encode(),
    b"Bearer  " + TOKEN.encode(),
    TOKEN.encode(),
    b"Bearer " + TOKEN.encode()[:-1],
    b"Bearer " + TOKEN.encode() + b"x",
    b"Bearer \xff\xfe",
    b"Bearer \xed\xa0\x80",
    b"Bearer " + b"x" * 7_000,
    "Bearer \u0661".encode(),
)
"""Values of the header ``Authorization`` that are not the token's."""


class FuzzedAgent:
    """One pod. :meth:`attack` may be called until the context of :func:`fuzzed_agent` ends."""

    def __init__(self, folder: Path) -> None:
        self._rig = Rig(folder)
        self._port = 0
        self._epoch = FIRST_EPOCH

    async def start(self, stack: AsyncExitStack) -> None:
        """Start the fake engine and the real server, and accept the first order."""
        rig = self._rig
        url = await stack.enter_async_context(rig.engine.running())
        rig.client = SGLangClient(await stack.enter_async_context(ClientSession()), url, KEY)
        rig.swapper = rig.new_swapper()
        pod = rig.context()
        lease = MeasurementLease(pod, rig.swapper, read_token=lambda: TOKEN)
        observer = PodObserver(pod, rig.swapper, Uploader(rig.folder.spool, rig.registry), lease)
        state = EngineState(boot="b1", ready=True, started_at=datetime.now(UTC))
        write_atomically(rig.folder.engine, state.to_json())
        runner = web.AppRunner(application(observer, rig.swapper, lease, Metrics(), lambda: TOKEN), access_log=None)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        assert site._server is not None
        self._port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
        answer = await self._send(
            _request("PUT", "/v1/draft", rig.swap_request(1, FIRST_EPOCH).to_json()), "first order"
        )
        assert _status(answer) == 202, answer
        await rig.swapper.wait()

    @property
    def spent(self) -> bool:
        """Whether a request withdrew the pod. The next attack then needs a new pod."""
        return self._rig.folder.withdrawal.exists()

    async def attack(self, random_: random.Random) -> None:
        """One mutated request. Raises AssertionError with its kind when an invariant does not hold."""
        kind = random_.choice(sorted(_KINDS))
        before, epoch = self._obeyed(), self._last_epoch()
        data, must_be_refused = _KINDS[kind](self, random_)
        what = f"{kind}: {data[:300]!r}"
        answer = await self._send(data, what, patience_seconds=PATIENCE_SECONDS)
        status = _status(answer)
        assert status is None or status != 500, f"{what}: a handler failed"
        assert not must_be_refused or self._obeyed() == before, f"{what}: the agent obeyed"
        await self._rig.swapper.wait()
        assert self._last_epoch() >= epoch, f"{what}: the fence went back"
        probe = await self._send(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", what)
        assert _status(probe) == 200, f"{what}: the agent no longer answers: {probe[:200]!r}"

    def _obeyed(self) -> tuple[bytes, ...]:
        """All that an order changes on the pod's disk."""
        folder = self._rig.folder
        files = (folder.swap_request, folder.withdrawal)
        return tuple(path.read_bytes() if path.exists() else b"" for path in files)

    def _last_epoch(self) -> int:
        last = self._rig.swapper.last_request()
        assert last is not None
        return last.epoch

    async def _send(self, data: bytes, what: str, *, patience_seconds: float = ANSWER_SECONDS) -> bytes:
        """The answer until the server closes the connection, or empty.

        A server may wait for the rest of a body. So the request ends with the connection after ``patience_seconds``.
        """
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                try:
                    writer.write(data)
                    await writer.drain()
                    reading = asyncio.ensure_future(reader.read())
                    await asyncio.wait({reading}, timeout=patience_seconds)
                    if not reading.done():
                        writer.write_eof()
                    return await reading
                except ConnectionError:
                    return b""  # the server had closed the connection before all was sent
                finally:
                    writer.close()
        except TimeoutError as error:
            raise AssertionError(f"{what}: no answer after {ANSWER_SECONDS:.0f} s") from error

    # kinds of requests, each with whether it must be refused -----------------------------------------------

    def _order(self, random_: random.Random, epoch: int) -> tuple[str, Record]:
        """A valid order of this epoch, and its route."""
        version = random_.randrange(3)
        orders: dict[str, Record] = {
            "/v1/draft": self._rig.swap_request(version, epoch),
            "/v1/measurement": MeasurementRequest(measurement=JOB, epoch=epoch, lease_seconds=60, begin=True),
            "/v1/measurement/trial": TrialRequest(measurement=JOB, version=1, digest="0" * 64),
        }
        route = random_.choice(sorted(orders))
        return route, orders[route]

    def stranger(self, random_: random.Random) -> tuple[bytes, bool]:
        """A valid order of a newer epoch without the token."""
        route, order = self._order(random_, self._last_epoch() + 1)
        return _request("PUT", route, order.to_json(), authorization=random_.choice(STRANGERS)), True

    def old_epoch(self, random_: random.Random) -> tuple[bytes, bool]:
        """An order with the token and an epoch that is older than the last, or that is no epoch."""
        route = random_.choice(("/v1/draft", "/v1/measurement"))
        older = [0, -1, 1, self._last_epoch() - 1, *(v for v in VALUES if not isinstance(v, int | float)), True]
        fields = json.loads(self._order_of(route, random_).to_json()) | {"epoch": random_.choice(older)}
        return _request("PUT", route, json.dumps(fields).encode()), True

    def _order_of(self, route: str, random_: random.Random) -> Record:
        while True:
            found, order = self._order(random_, self._last_epoch() + 1)
            if found == route:
                return order

    def body(self, random_: random.Random) -> tuple[bytes, bool]:
        """A mutated body with the token. It may still be a valid order."""
        route, order = self._order(random_, self._last_epoch() + random_.randrange(2))
        data = random_.choice((mutated_json, mutated_bytes))(random_, order.to_json())
        return _request("PUT", route, data), False

    def large(self, random_: random.Random) -> tuple[bytes, bool]:
        """A body above the limit, with its length, with a false length, or in chunks."""
        route, order = self._order(random_, self._last_epoch() + 1)
        data = order.to_json()[:-1] + b', "x": "' + b"x" * (MAX_BODY_BYTES * random_.randint(1, 16)) + b'"}'
        kind = random_.randrange(3)
        if kind == 0:
            return _request("PUT", route, data), True
        if kind == 1:
            return _request("PUT", route, data[:1000], length=b"99999999999"), True
        chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data)
        return _request("PUT", route, chunk, length=None, more=b"Transfer-Encoding: chunked\r\n"), True

    def head(self, random_: random.Random) -> tuple[bytes, bool]:
        """Another method, route or header, with or without the token. Not an order."""
        method, route = random_.choice(METHODS), random_.choice(ROUTES)
        if method == "PUT" and route in ORDER_ROUTES:
            method = "POST"
        route += random_.choice(("", "?a=b", "#x", "/../draft", "%00", "%ff", "\u00ff", "a" * 9_000))
        more = b"".join(header + b"\r\n" for header in random_.sample(HEADERS, random_.randrange(4)))
        token = random_.choice((f"Bearer {TOKEN}".encode(), *STRANGERS))
        return _request(method, route, b"{}", authorization=token, more=more), True

    def wire(self, random_: random.Random) -> tuple[bytes, bool]:
        """Any change of the bytes of a valid request, which may leave it valid."""
        route, order = self._order(random_, self._last_epoch())
        return mutated_bytes(random_, _request("PUT", route, order.to_json())), False


_KINDS: dict[str, Callable[[FuzzedAgent, random.Random], tuple[bytes, bool]]] = {
    "no token": FuzzedAgent.stranger,
    "old epoch": FuzzedAgent.old_epoch,
    "body": FuzzedAgent.body,
    "large body": FuzzedAgent.large,
    "request line and headers": FuzzedAgent.head,
    "bytes of a request": FuzzedAgent.wire,
}


def _request(
    method: str,
    route: str,
    body: bytes,
    *,
    authorization: bytes = f"Bearer {TOKEN}".encode(),
    length: bytes | None = b"",
    more: bytes = b"",
) -> bytes:
    """The bytes of a request. ``length``: empty for the body's own, None for no header."""
    declared = b"" if length is None else b"Content-Length: %b\r\n" % (length or str(len(body)).encode())
    token = b"Authorization: %b\r\n" % authorization if authorization else b""
    line = f"{method} {route} HTTP/1.1\r\n".encode("latin-1")
    return line + b"Host: a\r\nConnection: close\r\n" + token + declared + more + b"\r\n" + body


def _status(answer: bytes) -> int | None:
    """The status of an answer. None when the server closed the connection without one."""
    head = answer.split(b" ", 2)
    return int(head[1]) if len(head) > 1 and head[0].startswith(b"HTTP/") and head[1].isdigit() else None


@asynccontextmanager
async def fuzzed_agent() -> AsyncIterator[FuzzedAgent]:
    """A pod in a folder of its own."""
    folder = Path(tempfile.mkdtemp())
    try:
        async with AsyncExitStack() as stack:
            agent = FuzzedAgent(folder)
            await agent.start(stack)
            yield agent
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def attack_agents(seeds: range, on_failure: Callable[[str], Any]) -> None:
    """One attack for each seed. Calls ``on_failure`` with a text for each attack that an agent did not withstand."""
    remaining = iter(seeds)
    seed: int | None = next(remaining, None)
    while seed is not None:
        async with fuzzed_agent() as agent:
            while seed is not None and not agent.spent:
                try:
                    await agent.attack(random.Random(seed))  # noqa: S311 - mutations, no secrets
                except AssertionError as error:
                    on_failure(f"seed {seed}: {error}")
                seed = next(remaining, None)
