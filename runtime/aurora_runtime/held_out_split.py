"""Decides which requests are held out.

A held-out request is never trained on. The trainer compares drafts and reviews the vocabulary map on held-out requests,
and the validator measures candidates on their prompts.

Capture decides once, when it writes a trace: the trace holds a keyed hash of its prompt, or of the prompt's part that
all turns of a conversation share (``aurora_runtime.conversations``). Trainer, validator and agent read that number, and
need no key.

Invariants: the hash depends on the tokens and on the key of the speculator's lineage alone, whichever pod takes it. A
client cannot tell on which side of the split a prompt is.
"""

from __future__ import annotations

import hashlib
import hmac
import sys
from array import array
from collections.abc import Sequence
from typing import Final

PROMPTS_PER_HELD_OUT: Final = 8
"""One number in this many is held out."""
MAX_MEASURED_PROMPT_TOKENS: Final = 4096
"""Longer prompts are not measured with: the longest prompt of a measurement decides how large its KV caches are."""


def traffic_key(secret: str, lineage: int) -> bytes:
    """The key of all draws over the traffic of a lineage. ``secret`` is one that all pods of a speculator have."""
    return hmac.digest(secret.encode(), f"aurora traffic {lineage}".encode(), "sha256")


def keyed_draw(key: bytes, data: bytes) -> int:
    """A 64-bit number that nobody without ``key`` can predict.

    The rest of the digest stays secret, so it cannot be extended to that of longer data.
    """
    return int.from_bytes(hashlib.sha256(key + data).digest()[:8], "big")


def prompt_hash(tokens: Sequence[int], key: bytes = b"") -> int:
    """A 63-bit hash of token ids of a prompt, each as four bytes, little-endian.

    Args:
        key: the lineage's :func:`traffic_key`. Empty only where no client is involved.

    Raises OverflowError for a token that does not fit.
    """
    data = array("I", tokens)
    if sys.byteorder == "big":
        data.byteswap()
    return keyed_draw(key, data.tobytes()) >> 1


def is_held_out(hashed_prompt: int) -> bool:
    """Whether requests with this :func:`prompt_hash`, of their prompt or their conversation, are held out."""
    return hashed_prompt % PROMPTS_PER_HELD_OUT == 0
