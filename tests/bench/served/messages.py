"""The chat messages of a domain: the traffic that drafts learn from, and reserved messages that measure them.

Invariants: no two messages of a domain are the same. The last :data:`RESERVED_MESSAGES` messages are never traffic, so
no draft has learned from the messages that measure it.
"""

from __future__ import annotations

from typing import Final

from tests.assets.traces import recorded
from tests.traffic import prompts

DOMAINS: Final = ("json", "docstrings")
RESERVED_MESSAGES: Final = 160
MAX_JSON_MESSAGES: Final = 4000
"""A limit, because JSON extraction could generate messages without end."""


def traffic(domain: str) -> list[str]:
    """The messages that clients send to the live service, in order."""
    return _messages(domain)[:-RESERVED_MESSAGES]


def reserved(domain: str) -> list[str]:
    """The messages that are sent in measurements only."""
    return _messages(domain)[-RESERVED_MESSAGES:]


def _messages(domain: str) -> list[str]:
    if domain == "json":
        return recorded.json_messages(MAX_JSON_MESSAGES)
    distinct = dict[str, None]()
    for text in prompts.prompts(prompts.Domain(domain), recorded.DOMAIN_SEED):
        if text in distinct:  # all functions of the standard library have been asked about, and the stream begins again
            break
        distinct[text] = None
    return list(distinct)
