"""What a client asks about the traces of its own request: none at all, or traces under a tag.

A request says so in ``custom_params``, which SGLang takes on its OpenAI routes and on ``/generate``, and carries
unchanged to its scheduler::

    {"custom_params": {"aurora": {"trace": false}}}
    {"custom_params": {"aurora": {"tag": "tenant-7"}}}

Invariants: a tag leaves the engine only as a hash, under a key that the store does not have. A wish that cannot be
read is refused before the scheduler. A wish that reaches the scheduler unreadable all the same means "no trace". This
module imports neither torch nor SGLang.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

PARAMETER: Final = "aurora"
"""The key of ``custom_params`` that holds the wish."""
MAX_TAG_CHARACTERS: Final = 128
REMEMBERED_TAGS: Final = 4096
NO_TAG: Final = 0
TAG_HASH: Final = re.compile(r"[0-9a-f]{16}", re.ASCII)


@dataclass(frozen=True)
class TraceWish:
    """Whether a request may be traced, and the tag of its trace. An empty tag is none."""

    trace: bool = True
    tag: str = ""

    @property
    def is_shared(self) -> bool:
        """Whether lookup may answer other requests from this one.

        A tagged request is not shared, so that its text lies in shards only, where it can be erased.
        """
        return self.trace and not self.tag


DEFAULT: Final = TraceWish()
NO_TRACE: Final = TraceWish(trace=False)


def trace_wish(custom_params: Any) -> TraceWish:
    """The wish in a request's ``custom_params``.

    Raises ValueError, which SGLang answers with status 400. Its text does not show the tag.
    """
    if custom_params is None:
        return DEFAULT
    if not isinstance(custom_params, Mapping):
        raise ValueError("custom_params must be an object")  # noqa: TRY004
    if any(isinstance(key, str) and key != PARAMETER and key.lower() == PARAMETER for key in custom_params):
        raise ValueError(f"custom_params: write {PARAMETER} in lower case")
    if PARAMETER not in custom_params:
        return DEFAULT
    asked = custom_params[PARAMETER]
    if not isinstance(asked, Mapping):
        raise ValueError(f'custom_params.{PARAMETER} must be an object such as {{"trace": false}} or {{"tag": "name"}}')  # noqa: TRY004
    if unknown := asked.keys() - {"trace", "tag"}:
        raise ValueError(f"custom_params.{PARAMETER} knows only trace and tag, not {len(unknown)} other key(s)")
    trace, tag = asked.get("trace", True), asked.get("tag", "")
    if not isinstance(trace, bool):
        raise ValueError(f"custom_params.{PARAMETER}.trace must be true or false")  # noqa: TRY004
    if "tag" in asked and not (isinstance(tag, str) and 0 < len(tag) <= MAX_TAG_CHARACTERS):
        raise ValueError(f"custom_params.{PARAMETER}.tag must be a text of 1 to {MAX_TAG_CHARACTERS} characters")
    try:
        tag.encode()
    except UnicodeEncodeError:
        raise ValueError(f"custom_params.{PARAMETER}.tag must be valid Unicode") from None
    return TraceWish(trace, tag)


def wish_of(req: Any) -> TraceWish:
    """The wish of one of the scheduler's requests. Never raises for a wish that is wrong."""
    custom_params = req.sampling_params.custom_params
    if custom_params is None:
        return DEFAULT
    try:
        return trace_wish(custom_params)
    except ValueError:
        return NO_TRACE


def tag_key(secret: str) -> bytes:
    """The key of all tags of a speculator. ``secret`` is one that all its pods have."""
    return hmac.digest(secret.encode(), b"aurora tags", "sha256")


@lru_cache(REMEMBERED_TAGS)
def tag_number(key: bytes, tag: str) -> int:
    """The 63-bit number that stands for ``tag`` in a shard, never :data:`NO_TAG`. No tag has :data:`NO_TAG`."""
    if not tag:
        return NO_TAG
    digest = hmac.digest(key, tag.encode(), hashlib.sha256)
    return (int.from_bytes(digest[:8], "big") >> 1) or 1


def tag_hash(number: int) -> str:
    """A tag's number as people and records write it: 16 hexadecimal digits."""
    return f"{number:016x}"


def number_of_hash(text: str) -> int:
    """The number of a :func:`tag_hash`. Raises ValueError when the text is none."""
    if TAG_HASH.fullmatch(text) is None or not 0 < (number := int(text, 16)) < 1 << 63:
        raise ValueError("a tag's hash has 16 hexadecimal digits, the first one 0 to 7")
    return number
