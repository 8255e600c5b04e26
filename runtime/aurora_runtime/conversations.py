"""Puts all turns of a conversation on one side of the held-out split.

A chat client sends each turn with all earlier turns before it. Split by their whole prompts, one turn would be held out
and the next one trained on, with nearly the same text. So requests are split by the beginning that all turns share: the
tokens before the first answer. The target's chat template puts the same tokens before each answer, the *answer marker*.

Invariants:
- The beginning is a function of the prompt and the marker. Whichever pod serves a turn, it finds the same one.
- A beginning that very many prompts share is a few-shot example, not a conversation. Its requests are split by their
  whole prompts, or all traffic of one application would be on one side. Each engine start counts them anew, so a
  few-shot prompt may come to be on both sides.

The module is pure and imports neither torch nor SGLang.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

from aurora_runtime.held_out_split import is_held_out, prompt_hash

Message = dict[str, str]
Render = Callable[[list[Message]], Sequence[int]]
"""Renders messages as a prompt that asks for an answer, and returns the prompt's token ids."""
MAX_PROMPTS: Final = 64
"""A beginning that more different prompts share is no conversation's."""
REMEMBERED_BEGINNINGS: Final = 1024
_QUESTION: Final[Message] = {"role": "user", "content": "a"}
_SECOND_QUESTION: Final[Message] = {"role": "user", "content": "c"}
_ANSWERS: Final = ("b", "\n\nb")
"""The newlines of an answer may become one token with those before it."""


def answer_marker(*renders: Render) -> tuple[int, ...]:
    """The tokens that a chat template puts before each answer. Empty if there are none that all renders share.

    Args:
        renders: one for each setting of the template that requests may choose.
    """
    pairs = [
        (render([_QUESTION]), render([_QUESTION, {"role": "assistant", "content": answer}, _SECOND_QUESTION]))
        for render in renders
        for answer in _ANSWERS
    ]
    one, two = pairs[0]
    common = 0
    while common < min(len(one), len(two)) and one[-1 - common] == two[-1 - common]:
        common += 1
    marker = tuple(one[len(one) - common :])
    # A prompt may end with tokens that only ask for an answer, such as the beginning of a thought. They are cut off.
    while marker and not all(_finds_the_question(marker, *pair) for pair in pairs):
        marker = marker[:-1]
    return marker


def _finds_the_question(marker: Sequence[int], one: Sequence[int], two: Sequence[int]) -> bool:
    """Whether the prompts of a first and of a second turn have the same beginning, and ``marker`` after it."""
    first = list(beginning(one, marker))
    return 0 < len(first) < len(one) and list(beginning(two, marker)) == first


def beginning(prompt: Sequence[int], marker: Sequence[int]) -> Sequence[int]:
    """The tokens of ``prompt`` before the first ``marker``. All of them if there is none.

    Raises OverflowError for a token of more than 64 bits.
    """
    if not marker:
        return prompt
    tokens = array("q", prompt)
    data, wanted = tokens.tobytes(), array("q", marker).tobytes()
    at = data.find(wanted)
    while at % tokens.itemsize and at >= 0:  # begins within a token
        at = data.find(wanted, at + 1)
    return prompt if at < 0 else prompt[: at // tokens.itemsize]


def may_share(prompt: Sequence[int], marker: Sequence[int], key: bytes) -> bool:
    """Whether other requests may be answered from a request with this prompt. Not if prompt or beginning is held out.

    SGLang replaces the placeholders of images by numbers that no hash takes. Such a prompt is not shared.
    """
    try:
        return not any(is_held_out(prompt_hash(part, key)) for part in (prompt, beginning(prompt, marker)))
    except OverflowError:
        return False


class ConversationSplit:
    """Numbers the requests of an engine for the held-out split, by conversation.

    Args:
        key: the lineage's :func:`aurora_runtime.held_out_split.traffic_key`.
    """

    def __init__(self, key: bytes = b"") -> None:
        self._key = key
        self._prompts: OrderedDict[int, set[int]] = OrderedDict()

    def number(self, prompt: Sequence[int], marker: Sequence[int]) -> int:
        """The 63-bit number by which ``is_held_out`` decides about a request.

        Args:
            marker: the :func:`answer_marker` of the target's chat template.

        Raises OverflowError for a token that :func:`prompt_hash` does not take.
        """
        whole = prompt_hash(prompt, self._key)
        first = beginning(prompt, marker)
        if len(first) == len(prompt):
            return whole
        conversation = prompt_hash(first, self._key)
        prompts = self._prompts.setdefault(conversation, set())
        self._prompts.move_to_end(conversation)
        if len(self._prompts) > REMEMBERED_BEGINNINGS:
            self._prompts.popitem(last=False)
        if len(prompts) <= MAX_PROMPTS:
            prompts.add(whole)
        return conversation if len(prompts) <= MAX_PROMPTS else whole
