"""The one HTTP client of SGLang: requests for answers, and the admin API of one engine.

Invariants: every call has a time limit. A failed call raises :class:`EngineFault` with the route and the reason, never
with the key. The client always sends the fields whose defaults are dangerous. By default a pause aborts requests, and
an update touches the target and flushes the cache.

Routes and fields are those of SGLang 0.5.23 (sglang/srt/managers/io_struct.py:1927-2230).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp

from aurora_protocol.agent_api import MAX_COUNT, MEASUREMENT_HEADER
from aurora_runtime.engine.draft_update import LOADER, DraftReport, draft_report, path_payload
from aurora_runtime.errors import EngineFault, EngineGone, EngineUnreachable

QUERY_SECONDS: Final = 5.0
"""Time limit of calls that only read a value."""
CONTROL_SECONDS: Final = 60.0
"""Time limit of admin calls."""
UPDATE_SECONDS: Final = 300.0
"""Time limit of a weight update."""
FLUSH_SECONDS: Final = 10
"""How long SGLang may wait for its last requests to end before it refuses to flush."""
RESUME_RETRIES: Final = 2
RESUME_BACKOFF_SECONDS: Final = 0.2


def open_session() -> aiohttp.ClientSession:
    """A session for calls to engines, each call on a connection of its own.

    SGLang closes a connection that idles for 5 s (``SGLANG_TIMEOUT_KEEP_ALIVE``), while aiohttp keeps it for 15 s. A
    call sent on a connection that SGLang is closing is lost, and this alone would make a swap or a measurement fail.
    """
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True))


@dataclass(frozen=True)
class SGLangClient:
    """Calls to the engine at ``url``. The caller owns the session.

    Every method raises :class:`EngineFault` when the engine refuses, :class:`EngineGone` when there is no answer, and
    :class:`EngineUnreachable` when the connection failed.

    Args:
        admin_key: None for a server that was started without one.
        headers: further headers of every request.
    """

    session: aiohttp.ClientSession
    url: str
    admin_key: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    async def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, timeout_seconds: float
    ) -> tuple[bytes, Mapping[str, str]]:
        """Body and headers of the answer."""
        headers = dict(self.headers) | ({"Authorization": f"Bearer {self.admin_key}"} if self.admin_key else {})
        timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        try:
            async with self.session.request(
                method, self.url + path, json=body, headers=headers, timeout=timeout
            ) as answer:
                data = await answer.read()
        except aiohttp.ClientConnectionError as error:
            raise EngineUnreachable(f"{path}: {type(error).__name__}") from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise EngineGone(f"{path}: {type(error).__name__}") from error
        if answer.status != 200:
            raise EngineFault(f"{path}: {answer.status} {data[:300].decode(errors='replace')}")
        return data, answer.headers

    async def _json(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, timeout_seconds: float
    ) -> Any:
        data, _ = await self._call(method, path, body, timeout_seconds=timeout_seconds)
        try:
            return json.loads(data)
        except ValueError as error:
            raise EngineFault(f"{path}: the answer is not JSON") from error

    async def _object(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, timeout_seconds: float
    ) -> dict[str, Any]:
        answer = await self._json(method, path, body, timeout_seconds=timeout_seconds)
        if not isinstance(answer, dict):
            raise EngineFault(f"{path}: the answer is not a JSON object")
        return answer

    async def _command(self, path: str, body: Mapping[str, Any], *, timeout_seconds: float) -> None:
        """Call the admin API. Raises :class:`EngineFault` also when the answer reports a failure with status 200."""
        answer = await self._json("POST", path, body, timeout_seconds=timeout_seconds)
        if isinstance(answer, dict) and answer.get("success") is False:
            raise EngineFault(f"{path}: {str(answer.get('message'))[:300]}")

    # requests and queries ------------------------------------------------------------------------------------------

    async def is_ready(self) -> bool:
        """Whether the engine takes requests now. False while it is paused, starting or gone."""
        try:
            await self._call("GET", "/ready", timeout_seconds=QUERY_SECONDS)
        except EngineFault:
            return False
        return True

    async def generate(self, body: Mapping[str, Any], *, timeout_seconds: float) -> dict[str, Any]:
        """SGLang's answer to one ``/generate`` request."""
        return await self._object("POST", "/generate", body, timeout_seconds=timeout_seconds)

    async def guarding_measurement(self) -> str:
        """The measurement for which the engine's guard is in place. Empty when there is no guard."""
        _, headers = await self._call("GET", "/model_info", timeout_seconds=QUERY_SECONDS)
        return headers.get(MEASUREMENT_HEADER, "")

    async def server_info(self) -> str:
        """SGLang's resolved arguments, from a route that is open to everybody."""
        data, _ = await self._call("GET", "/server_info", timeout_seconds=CONTROL_SECONDS)
        return data.decode(errors="replace")

    async def context_length(self) -> int:
        """The engine's longest sequence, in tokens, as every client may read it."""
        models = await self._object("GET", "/v1/models", timeout_seconds=CONTROL_SECONDS)
        try:
            return int(models["data"][0]["max_model_len"])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise EngineFault("/v1/models: no max_model_len in the answer") from error

    async def tensor_parallel_ranks(self) -> int:
        """The number of tensor-parallel ranks. An update carries one payload for each."""
        info = await self._object("GET", "/server_info", timeout_seconds=CONTROL_SECONDS)
        try:
            return int(info["tp_size"])
        except (KeyError, TypeError, ValueError) as error:
            raise EngineFault("/server_info: no tp_size in the answer") from error

    async def traffic(self) -> EngineTraffic:
        """The engine's requests, from SGLang's metrics."""
        data, _ = await self._call("GET", "/metrics/", timeout_seconds=QUERY_SECONDS)
        return engine_traffic(data.decode())

    # the draft -----------------------------------------------------------------------------------------------------

    async def draft_version(self) -> int:
        """The version of the draft that the engine holds."""
        info = await self._object("GET", "/model_info", timeout_seconds=QUERY_SECONDS)
        text = str(info.get("weight_version", ""))
        if not text.isdecimal():
            raise EngineFault(f"/model_info: weight_version {text!r} is not the number of a draft version")
        return int(text)

    async def draft_report(self) -> DraftReport:
        """What the engine reports of the draft that it holds. Raises :class:`EngineFault` when it has no draft."""
        body = {"action": "checksum", "selector": "draft"}
        answer = await self._json("POST", "/weights_checker", body, timeout_seconds=CONTROL_SECONDS)
        try:
            return draft_report(answer)
        except ValueError as error:
            raise EngineFault(f"/weights_checker: {error}") from error

    async def draft_checksum(self) -> str:
        """The checksum of :meth:`draft_report`."""
        return (await self.draft_report()).checksum

    async def flush_prefix_cache(self) -> None:
        """Empty the prefix cache. Raises :class:`EngineFault` while requests are running."""
        await self._call("POST", f"/flush_cache?timeout={FLUSH_SECONDS}", {}, timeout_seconds=CONTROL_SECONDS)

    async def flush_if_idle(self) -> bool:
        """Empty the prefix cache unless a request is running. Returns whether the engine was idle."""
        try:
            await self.flush_prefix_cache()
        except EngineFault:
            return False
        return True

    async def pause_generation(self) -> None:
        """Stop generation in place: running requests keep their state, and new ones wait."""
        await self._command("/pause_generation", {"mode": "in_place"}, timeout_seconds=CONTROL_SECONDS)

    async def begin_weight_update(self) -> None:
        """Open an update of the draft's weights. Raises :class:`EngineFault` when an update is open already."""
        await self._command("/begin_weight_update", {"selector": "draft"}, timeout_seconds=CONTROL_SECONDS)

    async def update_draft(self, weights: Path, digest: str, version: int, ranks: int) -> None:
        """Load the draft in the file ``weights`` (as the engine sees it) and call it ``version``.

        Raises :class:`EngineFault` with the reason when the engine did not load the draft.

        Args:
            digest: SHA-256 of the file, which the engine reports once it holds the whole file.
        """
        body = {
            "serialized_named_tensors": [path_payload(weights, digest)] * ranks,
            "selector": "draft",
            "load_format": LOADER,
            "flush_cache": False,
            "weight_version": str(version),
            "abort_all_requests": False,
        }
        await self._command("/update_weights_from_tensor", body, timeout_seconds=UPDATE_SECONDS)

    async def end_weight_update(self) -> None:
        """Close the open update. Raises :class:`EngineFault` when no update is open."""
        await self._command("/end_weight_update", {}, timeout_seconds=CONTROL_SECONDS)

    async def resume_generation(self) -> None:
        """Continue generation. Harmless when nothing is paused. Retried, because a paused engine serves nobody."""
        body = {"torch_empty_cache": False}
        for attempt in range(RESUME_RETRIES):
            try:
                await self._command("/continue_generation", body, timeout_seconds=CONTROL_SECONDS)
            except EngineFault:
                await asyncio.sleep(RESUME_BACKOFF_SECONDS * (attempt + 1))
            else:
                return
        await self._command("/continue_generation", body, timeout_seconds=CONTROL_SECONDS)

    async def close_interrupted_update(self) -> None:
        """End an update that a dead caller left open, and resume generation."""
        with contextlib.suppress(EngineFault):  # refused when no update was begun
            await self.end_weight_update()
        await self.resume_generation()


def parse_counters(text: str) -> dict[str, float]:
    """The value of each counter in Prometheus text, by the counter's name. The series of a counter are summed."""
    sums: dict[str, float] = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        name = line.split("{", 1)[0].split(" ", 1)[0]
        try:
            sums[name] = sums.get(name, 0.0) + float(line.rsplit(" ", 1)[1])
        except (IndexError, ValueError):
            continue
    return sums


@dataclass(frozen=True)
class EngineTraffic:
    """The requests of one engine."""

    ended: int
    """Requests that ended since the engine's start, of clients and of others."""
    now: int | None
    """Requests that run or wait, as SGLang reported last. None: it did not say."""


def engine_traffic(text: str) -> EngineTraffic:
    """The requests that SGLang's metrics in ``text`` tell of."""
    sums = parse_counters(text)
    counts = [sums.get(f"sglang:{name}") for name in ("num_running_reqs", "num_queue_reqs")]
    now = None if None in counts else min(int(sum(count or 0.0 for count in counts)), MAX_COUNT)
    return EngineTraffic(int(sums.get("sglang:num_requests_total", 0)), now)
