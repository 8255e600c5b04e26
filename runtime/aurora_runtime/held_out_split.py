"""Decides which requests are held out.

A held-out request is never trained on. The trainer compares drafts and reviews the vocabulary map on held-out requests,
and the validator measures candidates on their prompts.

Invariant: the decision depends on the prompt alone. So the same prompt is never on both sides, whichever pod served it.
"""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Sequence
from typing import Final

PROMPTS_PER_HELD_OUT: Final = 8
"""One prompt in this many is held out, whenever it is asked."""


def prompt_hash(tokens: Sequence[int]) -> int:
    """A 63-bit hash of a prompt's token ids, each as four bytes, little-endian.

    Raises OverflowError for a token that does not fit.
    """
    data = array("I", tokens)
    if sys.byteorder == "big":
        data.byteswap()
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big") >> 1


def is_held_out(hashed_prompt: int) -> bool:
    """Whether requests with this :func:`prompt_hash` are held out."""
    return hashed_prompt % PROMPTS_PER_HELD_OUT == 0
