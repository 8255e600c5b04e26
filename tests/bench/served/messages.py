"""The chat messages of a domain: the traffic that drafts learn from, and reserved messages that measure them.

Invariants: no two messages of a domain are the same. The last messages of a domain are reserved: they are never
traffic, so no draft has learned from the messages that measure it.
"""

from __future__ import annotations

import itertools
import random
from typing import Final

from tests.assets.traces import recorded
from tests.traffic import prompts

LEARNED: Final = ("json", "docstrings")
"""The domains that are measured by default: a draft learns each of them."""
DOMAINS: Final = (*LEARNED, "prose", "mixed", "turns")
MIXED: Final = ("json", "docstrings", "sql", "prose")
"""The kinds of requests that ``mixed`` shuffles and ``turns`` has in turn, each as often as the others."""
TURN_MESSAGES: Final = 20
"""Messages of one kind that ``turns`` has in a row: those of one round at concurrency 1 and 4."""
RESERVED_MESSAGES: Final = {"json": 2880, "docstrings": 160, "prose": 640, "mixed": 1280, "turns": 1280}
"""Messages for measurements. The standard library has too few functions for more requests for docstrings."""
MAX_MESSAGES: Final = 6000
"""A limit, because all domains but docstrings could generate messages without end."""


def traffic(domain: str) -> list[str]:
    """The messages that clients send to the live service, in order."""
    return _messages(domain)[: -RESERVED_MESSAGES[domain]]


def reserved(domain: str) -> list[str]:
    """The messages that are sent in measurements only."""
    return _messages(domain)[-RESERVED_MESSAGES[domain] :]


def _messages(domain: str) -> list[str]:
    match domain:
        case "json":
            return recorded.json_messages(MAX_MESSAGES)
        case "mixed":
            return _mixed()
        case "turns":
            return _in_turn()
        case _:
            return _distinct(prompts.Domain(domain))


def _mixed() -> list[str]:
    """As many messages of each kind as there are of the rarest, in a random order."""
    kinds = [_messages(kind) for kind in MIXED]
    messages = list(itertools.chain.from_iterable(zip(*kinds, strict=False)))
    random.Random(recorded.DOMAIN_SEED).shuffle(messages)  # noqa: S311 - an order, not a secret
    return messages


def _in_turn() -> list[str]:
    """:data:`TURN_MESSAGES` of each kind in a row, as often as there are so many of the rarest."""
    kinds = [_messages(kind) for kind in MIXED]
    whole = min(map(len, kinds)) // TURN_MESSAGES * TURN_MESSAGES
    firsts = range(0, whole, TURN_MESSAGES)
    return [message for first in firsts for kind in kinds for message in kind[first : first + TURN_MESSAGES]]


def _distinct(domain: prompts.Domain) -> list[str]:
    """The distinct messages of a stream, until the stream begins again."""
    distinct = dict[str, None]()
    for text in prompts.prompts(domain, recorded.DOMAIN_SEED):
        if text in distinct or len(distinct) == MAX_MESSAGES:
            break
        distinct[text] = None
    return list(distinct)
