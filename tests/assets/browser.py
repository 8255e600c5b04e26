"""A headless Chromium that opens a file and answers questions about the page, over its DevTools protocol.

Why not a library: the few calls fit here, and drivers of browsers download a browser of their own.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from aiohttp import ClientSession, ClientWebSocketResponse, WSMsgType

START_SECONDS: Final = 60.0
CALL_SECONDS: Final = 60.0
COMPLAINTS: Final = frozenset({"Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"})
_ROOT: Final = ("--no-sandbox",) if os.geteuid() == 0 else ()
_FLAGS: Final = (
    "--headless",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
    *_ROOT,
)


@dataclass
class BrowserPage:
    """One tab."""

    socket: ClientWebSocketResponse
    session: str
    complaints: list[str] = field(default_factory=list)
    """What the console said: errors, warnings and logs."""
    requested: list[str] = field(default_factory=list)
    """Every address that the page asked for."""
    _numbers: Any = field(default_factory=lambda: itertools.count(1000))
    _events: set[str] = field(default_factory=set)

    async def call(self, method: str, **parameters: Any) -> Any:
        """Call a method of the protocol, and return its result. Events that come meanwhile are kept."""
        number = next(self._numbers)
        message = {"id": number, "sessionId": self.session, "method": method, "params": parameters}
        await self.socket.send_json(message)
        while True:
            answer = await self._received()
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    async def open(self, file: Path, *, width: int, height: int, dark: bool) -> None:
        """Open a file on a screen of this size, and wait until it is loaded."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.call(f"{domain}.enable")
        await self.call("Emulation.setEmulatedMedia", features=[scheme])
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 700
        )
        self._events.clear()
        await self.call("Page.navigate", url=file.as_uri())
        while "Page.loadEventFired" not in self._events:
            await self._received()

    async def value(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        answer = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def screenshot(self, file: Path, *, max_height: int | None = None) -> None:
        """Save a picture of the whole page, or of its beginning."""
        size = (await self.call("Page.getLayoutMetrics"))["cssContentSize"]
        height = min(size["height"], max_height or size["height"])
        clip = {"x": 0, "y": 0, "width": size["width"], "height": height, "scale": 1}
        shot = await self.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        _save(file, base64.b64decode(shot["data"]))

    async def _received(self) -> dict[str, Any]:
        message = await self.socket.receive(timeout=CALL_SECONDS)
        assert message.type is WSMsgType.TEXT, f"the browser closed the connection: {message}"
        answer: dict[str, Any] = message.json()
        method = answer.get("method", "")
        self._events.add(method)
        if method in COMPLAINTS:
            self.complaints.append(str(answer["params"]))
        elif method == "Network.requestWillBeSent":
            self.requested.append(answer["params"]["request"]["url"])
        return answer


@asynccontextmanager
async def browser_page(executable: str, profile: Path) -> AsyncIterator[BrowserPage]:
    """A new tab of a new browser, which ends with the context.

    Args:
        profile: folder for the browser's files.
    """
    arguments = (*_FLAGS, f"--user-data-dir={profile}", "about:blank")
    quiet = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(
        executable, *arguments, stdout=quiet, stderr=quiet, start_new_session=True
    )
    try:
        port, path = await _address(profile / "DevToolsActivePort")
        async with (
            ClientSession() as client,
            client.ws_connect(f"ws://127.0.0.1:{port}{path}", max_msg_size=64 << 20) as socket,
        ):
            target = (await _browser_call(socket, 1, "Target.createTarget", url="about:blank"))["targetId"]
            attached = await _browser_call(socket, 2, "Target.attachToTarget", targetId=target, flatten=True)
            yield BrowserPage(socket, attached["sessionId"])
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the program may be a script around the browser
        await process.wait()


async def _address(file: Path) -> tuple[str, str]:
    """Port and path of the browser's endpoint, which it writes once it listens."""
    async with asyncio.timeout(START_SECONDS):
        while True:
            if len(lines := _lines(file)) == 2:
                return lines[0], lines[1]
            await asyncio.sleep(0.1)


def _lines(file: Path) -> list[str]:
    return file.read_text().split() if file.exists() else []


def _save(file: Path, data: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)


async def _browser_call(socket: ClientWebSocketResponse, number: int, method: str, **parameters: Any) -> Any:
    await socket.send_json({"id": number, "method": method, "params": parameters})
    while True:
        answer = await socket.receive_json(timeout=CALL_SECONDS)
        if answer.get("id") == number:
            return answer["result"]
