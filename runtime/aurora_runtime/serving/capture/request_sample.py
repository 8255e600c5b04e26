"""Draws which requests are in the traced sample: whole conversations, where a prompt belongs to one.

A later turn attends to the states of the earlier ones, which the prefix cache holds and which are computed only once.
Training finds them if the earlier turns were traced too.

Invariants: without the key nobody can choose a request that is traced, or one that is not. A beginning that very many
requests share is no conversation's (``aurora_runtime.conversations``). Its requests are drawn one by one, or all
traffic of one application would be traced, or none.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

from aurora_runtime.conversations import REMEMBERED_BEGINNINGS, beginning
from aurora_runtime.held_out_split import keyed_draw, prompt_hash

MAX_REQUESTS: Final = 64
"""A beginning that more requests share is no conversation's."""
REMEMBERED_REQUESTS: Final = 4096
"""Requests whose draw is remembered. A running request keeps its draw, and a round does not hash its tokens again."""


def is_sampled(rid: str, share: float, key: bytes = b"") -> bool:
    """Whether a request is in the sample by its id, which a client may choose: a function of the id and the key."""
    return keyed_draw(key, rid.encode()) < share * (1 << 64)


class RequestSample:
    """The sample of an engine's requests.

    Args:
        share: returns the share of the requests that are sampled now. What a lower one samples, a higher one does too.
        key: the lineage's :func:`aurora_runtime.held_out_split.traffic_key`.
        max_tokens: a prompt of so many tokens is never sampled.
        refused_prompt: is called once for each request that would be sampled but for its prompt.
    """

    def __init__(
        self,
        share: Callable[[], float],
        key: bytes = b"",
        *,
        max_tokens: int | None = None,
        refused_prompt: Callable[[], None] = lambda: None,
    ) -> None:
        self._share, self._key = share, key
        self._max_tokens, self._refused_prompt = max_tokens, refused_prompt
        self._draws: OrderedDict[str, bool] = OrderedDict()
        self._requests: OrderedDict[int, int] = OrderedDict()

    def has(self, rid: str, prompt: Sequence[int], marker: Sequence[int]) -> bool:
        """Whether the request is sampled. The same in all rounds of the request.

        Args:
            marker: what the chat template puts before each answer.
        """
        known = self._draws.get(rid)
        if known is None:
            known = self._draw(rid, prompt, marker)
            if known and self._max_tokens is not None and len(prompt) >= self._max_tokens:
                known = False
                self._refused_prompt()
            self._draws[rid] = known
            if len(self._draws) > REMEMBERED_REQUESTS:
                self._draws.popitem(last=False)
        else:
            self._draws.move_to_end(rid)
        return known

    def _draw(self, rid: str, prompt: Sequence[int], marker: Sequence[int]) -> bool:
        share = self._share()
        if share >= 1:
            return True
        number = self._conversation(prompt, marker)
        return is_sampled(rid, share, self._key) if number is None else number < share * (1 << 63)

    def _conversation(self, prompt: Sequence[int], marker: Sequence[int]) -> int | None:
        """The hash of the conversation's beginning. None if the prompt belongs to no conversation."""
        try:
            first = beginning(prompt, marker)
            if len(first) == len(prompt):
                return None
            number = prompt_hash(first, self._key)
        except OverflowError:  # SGLang's placeholders of images are no tokens
            return None
        requests = self._requests[number] = self._requests.pop(number, 0) + 1
        if len(self._requests) > REMEMBERED_BEGINNINGS:
            self._requests.popitem(last=False)
        return number if requests <= MAX_REQUESTS else None
