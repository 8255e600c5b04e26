"""What is asked: the traffic that drafts learn from, and the messages that they are measured with.

Invariants: no two messages of a domain are the same; the last :data:`RESERVED` of them are no traffic, so whoever
measures with those asks what no draft has learnt from.
"""

from __future__ import annotations

from typing import Final

from tests.assets.traces import recorded as traces
from tests.traffic.prompts import Domain
from tests.traffic.prompts import prompts as endless

DOMAINS: Final = ("json", "docstrings")
RESERVED: Final = 160
MOST: Final = 4000
"""Messages of the domain that has no end of its own."""


def traffic(domain: str) -> list[str]:
    """The messages that a service is asked, in order."""
    return _messages(domain)[:-RESERVED]


def reserved(domain: str) -> list[str]:
    """The messages that it is not."""
    return _messages(domain)[-RESERVED:]


def _messages(domain: str) -> list[str]:
    if domain == "json":
        return traces.json_messages(MOST)
    seen = dict[str, None]()
    for text in endless(Domain(domain), traces.DOMAIN_SEED):
        if text in seen:  # the standard library's functions have all been asked about and begin again
            break
        seen[text] = None
    return list(seen)
