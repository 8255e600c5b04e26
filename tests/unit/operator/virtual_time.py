"""Runs coroutines in virtual time: a wait ends at once, and the loop's clock moves on by its length."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock moves only while nothing can run."""

    def __init__(self) -> None:
        self._now_seconds = 0.0
        super().__init__(_Selector(self))

    def time(self) -> float:
        return self._now_seconds

    def advance(self, seconds: float) -> None:
        self._now_seconds += seconds


class _Selector(selectors.DefaultSelector):
    """Asks for file descriptors without waiting for them."""

    def __init__(self, loop: _VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "everything waits for something that never comes"
        self._loop.advance(timeout)
        return super().select(0)


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of ``coroutine``. The clock begins at 0 seconds."""
    with asyncio.Runner(loop_factory=_VirtualLoop) as runner:
        return runner.run(coroutine)


def now() -> float:
    """Virtual seconds since the beginning."""
    return asyncio.get_running_loop().time()
