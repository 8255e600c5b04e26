"""The hash that stands for a client's tag in the store.

Invariant: the hash is keyed with a secret of the speculator, which the store does not have. So nobody with the bucket
can try tags.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from functools import lru_cache
from typing import Final

REMEMBERED_TAGS: Final = 4096
NO_TAG: Final = 0
"""Stands for a request without a tag."""
_TAG_HASH: Final = re.compile(r"[0-9a-f]{16}", re.ASCII)


def traffic_secret(speculator_key: bytes) -> str:
    """The secret that all pods of a speculator share, derived from its key. Nobody can compute the key back."""
    return hmac.digest(speculator_key.strip(), b"aurora traffic of all pods", "sha256").hex()


def tag_key(secret: str) -> bytes:
    """The key of all tags of a speculator. ``secret`` is its :func:`traffic_secret`."""
    return hmac.digest(secret.encode(), b"aurora tags", "sha256")


@lru_cache(REMEMBERED_TAGS)
def tag_number(key: bytes, tag: str) -> int:
    """The 63-bit number that stands for ``tag`` in a shard, never :data:`NO_TAG`. No tag has :data:`NO_TAG`."""
    if not tag:
        return NO_TAG
    digest = hmac.digest(key, tag.encode(), hashlib.sha256)
    return (int.from_bytes(digest[:8], "big") >> 1) or 1


def tag_hash(number: int) -> str:
    """A tag's number as people write it: 16 hexadecimal digits."""
    return f"{number:016x}"


def number_of_hash(text: str) -> int:
    """The number of a :func:`tag_hash`. Raises ValueError when the text is none."""
    if _TAG_HASH.fullmatch(text) is None or not 0 < (number := int(text, 16)) < 1 << 63:
        raise ValueError("a tag's hash has 16 hexadecimal digits, the first one 0 to 7")
    return number
