"""The chat messages of a domain: the traffic that drafts learn from, and reserved messages that measure them.

Invariants: no two messages of a domain are the same. The last :data:`RESERVED` messages are never traffic, so a
measurement with them asks what no draft has learned from.
"""

from __future__ import annotations

from typing import Final

from tests.assets.traces import recorded
from tests.traffic import prompts

DOMAINS: Final = ("json", "docstrings")
RESERVED: Final = 160
MAX_JSON_MESSAGES: Final = 4000
"""JSON extraction has no end of its own."""


def traffic(domain: str) -> list[str]:
    """The messages that a service is asked, in order."""
    return _messages(domain)[:-RESERVED]


def reserved(domain: str) -> list[str]:
    """The messages that are kept for measurements."""
    return _messages(domain)[-RESERVED:]


def _messages(domain: str) -> list[str]:
    if domain == "json":
        return recorded.json_messages(MAX_JSON_MESSAGES)
    distinct = dict[str, None]()
    for text in prompts.prompts(prompts.Domain(domain), recorded.DOMAIN_SEED):
        if text in distinct:  # all functions of the standard library have been asked about, and the stream begins again
            break
        distinct[text] = None
    return list(distinct)
