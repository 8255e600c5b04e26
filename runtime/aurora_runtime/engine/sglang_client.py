"""A client of SGLang's admin API: what one engine holds, and the draft-only swap of a running one.

Invariants: a pause that may have begun is always ended, whatever an answer said; every call has a time limit and fails
as an :class:`EngineFault` with the route and the reason, never with the key; fields with dangerous defaults are always
sent: pausing aborts requests by default, and an update touches the target by default and flushes the cache. Routes and
fields as of SGLang 0.5.23 (sglang/srt/managers/io_struct.py:1927-2230).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp

from aurora_protocol.agent_api import MEASUREMENT_HEADER, LiveCounters
from aurora_runtime.engine.live_counters import live_counters
from aurora_runtime.engine.path_payload import LOADER, path_payload
from aurora_runtime.errors import EngineFault, EngineGone

SHORT_S: Final = 5.0
CONTROL_S: Final = 60.0
UPDATE_S: Final = 300.0
FLUSH_S: Final = 10
"""How long SGLang may wait for its last requests to end before it refuses to flush."""
RESUME_RETRIES: Final = 2


def session() -> aiohttp.ClientSession:
    """For calls to engines, each on a connection of its own.

    SGLang closes one that idles for 5 s (``SGLANG_TIMEOUT_KEEP_ALIVE``), aiohttp keeps it for 15, and an order that
    meets the end of it is lost: a swap or a measurement failed for nothing.
    """
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True))


@dataclass(frozen=True)
class SGLangClient:
    """Calls to the engine at ``url``. The session is the caller's; a server started without a key needs none."""

    session: aiohttp.ClientSession
    url: str
    key: str | None = field(default=None, repr=False)

    async def _call(self, method: str, path: str, body: dict[str, Any] | None = None, *, limit: float) -> bytes:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        try:
            async with self.session.request(
                method, self.url + path, json=body, headers=headers, timeout=aiohttp.ClientTimeout(total=limit)
            ) as answer:
                data = await answer.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise EngineGone(f"{path}: {type(error).__name__}") from error
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

    async def guarded(self) -> str:
        """The measurement for which the engine's guard stands; empty when it does not."""
        try:
            async with self.session.get(
                f"{self.url}/model_info", timeout=aiohttp.ClientTimeout(total=SHORT_S)
            ) as answer:
                return answer.headers.get(MEASUREMENT_HEADER, "")
        except (aiohttp.ClientError, TimeoutError) as error:
            raise EngineFault(f"/model_info: {type(error).__name__}") from error

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
        """One digest over the checksums of the draft's weights on every rank, in the order of ranks.

        Not SGLang's ``per_engine_checksum``: that is one of nothing, and still a checksum, when there is no draft.
        """
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

    async def flush(self) -> None:
        """Empty the prefix cache; raises :class:`EngineFault` when the engine does not come to rest."""
        await self._call("POST", f"/flush_cache?timeout={FLUSH_S}", {}, limit=CONTROL_S)

    async def ranks(self) -> int:
        """Tensor-parallel ranks: an update carries one payload for each."""
        info = await self._json("GET", "/server_info", limit=CONTROL_S)
        try:
            return int(info["tp_size"])
        except (KeyError, TypeError, ValueError) as error:
            raise EngineFault("/server_info: no tp_size in the answer") from error

    async def swap(self, weights: Path, version: int) -> float:
        """Load the draft in the file ``weights`` (as the engine sees it) in a pause, and call it ``version``.

        Requests under way keep their state and go on afterwards. Success means that the engine said so: it also does
        for a file that it could not load, so the caller compares :meth:`version` and :meth:`checksum`.

        Returns: seconds that generation stood still.
        """
        ranks = await self.ranks()  # before the pause: this answer may take the engine a while
        began = time.monotonic()
        ended = False
        try:
            await self.pause()
            await self.begin()
            await self.update(weights, version, ranks)
            await self.end()
            ended = True
        finally:  # whatever an answer said, the call may have had its effect
            if not ended:
                with contextlib.suppress(EngineFault):
                    await self.end()
            await self.resume()
        return time.monotonic() - began

    async def pause(self) -> None:
        """Stop generation where it is: running requests keep their state, new ones wait."""
        await self._order("/pause_generation", {"mode": "in_place"}, limit=CONTROL_S)

    async def begin(self) -> None:
        await self._order("/begin_weight_update", {"selector": "draft"}, limit=CONTROL_S)

    async def update(self, weights: Path, version: int, ranks: int) -> None:
        body = {
            "serialized_named_tensors": [path_payload(weights)] * ranks,
            "selector": "draft",
            "load_format": LOADER,
            "flush_cache": False,
            "weight_version": str(version),
            "abort_all_requests": False,
        }
        await self._order("/update_weights_from_tensor", body, limit=UPDATE_S)

    async def end(self) -> None:
        await self._order("/end_weight_update", {}, limit=CONTROL_S)

    async def resume(self) -> None:
        """Go on; retried, because an engine left paused serves nobody. Harmless when nothing is paused."""
        order = {"torch_empty_cache": False}
        for attempt in range(RESUME_RETRIES):
            try:
                await self._order("/continue_generation", order, limit=CONTROL_S)
            except EngineFault:
                await asyncio.sleep(0.2 * (attempt + 1))
            else:
                return
        await self._order("/continue_generation", order, limit=CONTROL_S)
