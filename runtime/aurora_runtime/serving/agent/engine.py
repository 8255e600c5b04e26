"""A client of SGLang's admin API on this pod's loopback.

Invariant: every call has a timeout and fails as :class:`EngineFault` with the route and the reason, never with the key.
Routes and fields as of SGLang 0.5.23 (sglang/srt/managers/io_struct.py:1927-2230). Fields with dangerous defaults are
always sent: pausing aborts requests by default, and an update touches the target by default.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import aiohttp

from aurora_api.agent import LiveCounters
from aurora_runtime.errors import EngineFault
from aurora_runtime.serving.agent.payload import path_payload
from aurora_runtime.serving.settings import LOADER

SHORT_S: Final = 5.0
CONTROL_S: Final = 60.0
UPDATE_S: Final = 300.0
RESUME_RETRIES: Final = 2


def parse_counters(text: str) -> dict[str, float]:
    """Sum of each counter's series in Prometheus text, by name."""
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


def live_counters(text: str, draft_tokens: int) -> LiveCounters:
    """What the engine's ``/metrics`` says of speculation, since its start.

    SGLang counts answer tokens, verify calls and requests when a request ends, and neither proposals nor acceptances:
    a round proposes ``draft_tokens - 1``; the first answer token comes from the prefill, and each round adds its
    accepted drafts and one bonus token. A request cut short by its end token makes the estimate a little low.
    """
    sums = parse_counters(text)
    requests = int(sums.get("sglang:num_requests_total", 0))
    tokens = int(sums.get("sglang:generation_tokens_total", 0))
    rounds = int(sums.get("sglang:spec_verify_calls_total", 0))
    return LiveCounters(
        requests=requests,
        answer_tokens=tokens,
        verify_rounds=rounds,
        proposed=rounds * (draft_tokens - 1),
        accepted=max(0, tokens - requests - rounds),
    )


class EngineClient:
    """Calls to one engine. Use as an async context manager."""

    def __init__(self, url: str, key: str) -> None:
        self._url = url
        self._session = aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"})
        self._ranks: int | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def _call(self, method: str, path: str, body: dict[str, Any] | None = None, *, limit: float) -> bytes:
        try:
            async with self._session.request(
                method, self._url + path, json=body, timeout=aiohttp.ClientTimeout(total=limit)
            ) as answer:
                data = await answer.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise EngineFault(f"{path}: {type(error).__name__}") from error
        if answer.status != 200:
            raise EngineFault(f"{path}: {answer.status} {data[:300].decode(errors='replace')}")
        return data

    async def _json(self, method: str, path: str, body: dict[str, Any] | None = None, *, limit: float) -> Any:
        data = await self._call(method, path, body, limit=limit)
        try:
            return json.loads(data)
        except ValueError as error:
            raise EngineFault(f"{path}: the answer is not JSON") from error

    async def _order(self, path: str, body: dict[str, Any], *, limit: float) -> None:
        answer = await self._json("POST", path, body, limit=limit)
        if isinstance(answer, dict) and answer.get("success") is False:
            raise EngineFault(f"{path}: {str(answer.get('message'))[:300]}")

    async def ready(self) -> bool:
        """Whether the engine takes requests now; false while it is paused, starts or is gone."""
        try:
            await self._call("GET", "/ready", limit=SHORT_S)
        except EngineFault:
            return False
        return True

    async def version(self) -> int:
        """The draft version that the engine holds."""
        info = await self._json("GET", "/model_info", limit=SHORT_S)
        text = str(info.get("weight_version", ""))
        if not text.isdecimal():
            raise EngineFault(f"/model_info: weight_version {text!r} is not a version of ours")
        return int(text)

    async def counters(self, draft_tokens: int) -> LiveCounters:
        text = await self._call("GET", "/metrics/", limit=SHORT_S)
        return live_counters(text.decode(), draft_tokens)

    async def checksum(self) -> str:
        """One digest over the checksums of the draft's weights on every rank."""
        answer = await self._json(
            "POST", "/weights_checker", {"action": "checksum", "selector": "draft"}, limit=CONTROL_S
        )
        try:
            essence = [rank["checksums"] for rank in answer["ranks"]]
        except (KeyError, TypeError) as error:
            raise EngineFault("/weights_checker: no checksums in the answer") from error
        if not essence or not all(essence):
            raise EngineFault("/weights_checker: no draft weights in the answer")
        return hashlib.sha256(json.dumps(essence, sort_keys=True).encode()).hexdigest()

    async def pause(self) -> None:
        """Stop generation where it is: running requests keep their state, new ones wait."""
        await self._order("/pause_generation", {"mode": "in_place"}, limit=CONTROL_S)

    async def resume(self) -> None:
        """Go on; retried, because a pod left paused serves nobody. Harmless when nothing is paused."""
        order = {"torch_empty_cache": False}
        for attempt in range(RESUME_RETRIES):
            try:
                await self._order("/continue_generation", order, limit=CONTROL_S)
            except EngineFault:
                await asyncio.sleep(0.2 * (attempt + 1))
            else:
                return
        await self._order("/continue_generation", order, limit=CONTROL_S)

    async def begin(self) -> None:
        await self._order("/begin_weight_update", {"selector": "draft"}, limit=CONTROL_S)

    async def end(self) -> None:
        await self._order("/end_weight_update", {}, limit=CONTROL_S)

    async def update(self, file: Path, version: int) -> None:
        """Load ``file`` into the draft and call the result ``version``."""
        body = {
            "serialized_named_tensors": [path_payload(str(file))] * await self._tensor_ranks(),
            "selector": "draft",
            "load_format": LOADER,
            "flush_cache": False,
            "weight_version": str(version),
            "abort_all_requests": False,
        }
        await self._order("/update_weights_from_tensor", body, limit=UPDATE_S)

    async def _tensor_ranks(self) -> int:
        if self._ranks is None:
            info = await self._json("GET", "/server_info", limit=CONTROL_S)
            self._ranks = int(info["tp_size"])
        return self._ranks
