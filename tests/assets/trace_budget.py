"""A budget of traces that no test uses up."""

from __future__ import annotations

from typing import Final

TRACE_ALL: Final = 10**9
"""Tokens a minute: all requests are traced, but for one in millions."""
