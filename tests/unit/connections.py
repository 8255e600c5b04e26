"""Lets a test's HTTP server close without an open connection."""

from __future__ import annotations

import asyncio

LOOP_TURNS = 10
"""Accepting a connection, reading its end and closing it take four."""


async def settled_connections() -> None:
    """Let a server take, and lose, the connections that its client gave up.

    A connection that is accepted while the server closes is never closed, which asyncio warns of.
    """
    for _ in range(LOOP_TURNS):
        await asyncio.sleep(0)
