"""SGLang's admin API: what the engine holds, and the draft-only swap of a running server.

Invariants: `end` and `continue` are always sent once a swap has begun, so that a failing swap never leaves a server
paused; every field whose default would abort or flush requests is sent explicitly (notes: sglang.md, sections 7 and 8).
"""

from __future__ import annotations

import base64
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from aurora_runtime.errors import EngineFault

LOADER = "aurora_runtime.engine.loader.load_draft"
CALL_TIMEOUT = aiohttp.ClientTimeout(total=60)


def path_payload(path: Path) -> str:
    """Base64 of a pickled ``[("path", torch.ByteTensor(path))]``, written without torch.

    SGLang's restricted unpickler admits ``torch.ByteTensor`` (srt/utils/common.py:3144); the process that sends may be
    one that has no torch. Nothing is unpickled on this side.
    """
    numbers = pickle.dumps(list(str(path).encode()), protocol=2)[2:-1]  # without PROTO and STOP
    name = b"path"
    tensor = b"ctorch\nByteTensor\n" + numbers + b"\x85R"
    text = b"X" + len(name).to_bytes(4, "little") + name
    return base64.b64encode(b"\x80\x02]" + text + tensor + b"\x86a.").decode()


@dataclass(frozen=True)
class EngineAdmin:
    """Calls to one server. ``session`` is the caller's, so that its connections are closed with it."""

    session: aiohttp.ClientSession
    url: str
    admin_key: str | None = None

    async def call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """POST ``body``, or GET without one; the parsed answer. Raises :class:`EngineFault`."""
        headers = {"Authorization": f"Bearer {self.admin_key}"} if self.admin_key else {}
        method = "GET" if body is None else "POST"
        try:
            async with self.session.request(
                method, self.url + path, json=body, headers=headers, timeout=CALL_TIMEOUT
            ) as response:
                if response.status != 200:
                    raise EngineFault(f"{path}: status {response.status}")
                if response.content_type != "application/json":
                    return await response.text()
                answer = await response.json()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise EngineFault(f"{path}: {type(error).__name__}") from error
        if isinstance(answer, dict) and answer.get("success") is False:
            raise EngineFault(f"{path}: {answer.get('message', 'refused')}")
        return answer

    async def version(self) -> str:
        """The weight version the engine reports."""
        return str((await self.call("/model_info"))["weight_version"])

    async def checksum(self) -> str:
        """One checksum over the draft's weights on all ranks (srt/entrypoints/http_server.py:1599)."""
        answer = await self.call("/weights_checker", {"action": "checksum", "selector": "draft"})
        checksum = answer.get("per_engine_checksum") if isinstance(answer, dict) else None
        if not checksum:
            raise EngineFault("/weights_checker: the answer holds no per_engine_checksum")
        return str(checksum)

    async def swap(self, weights: Path, version: int) -> str:
        """Load the draft in ``weights`` (a safetensors file visible to the server) in place; the checksum after it.

        Requests under way wait for the pause of some tenths of a second and go on. The caller compares the checksum:
        the engine reports success for a file it could not use.
        """
        await self.call("/pause_generation", {"mode": "in_place"})
        try:
            await self.call("/begin_weight_update", {"selector": "draft"})
            try:
                await self.call(
                    "/update_weights_from_tensor",
                    {
                        "serialized_named_tensors": [path_payload(weights)],
                        "load_format": LOADER,
                        "selector": "draft",
                        "flush_cache": False,
                        "weight_version": str(version),
                    },
                )
            finally:
                await self.call("/end_weight_update", {})
        finally:
            await self.call("/continue_generation", {"torch_empty_cache": False})
        return await self.checksum()

    async def flush(self) -> None:
        """Empty the prefix cache; the server must be idle. Raises :class:`EngineFault` when it is not."""
        await self.call("/flush_cache?timeout=10", {})
