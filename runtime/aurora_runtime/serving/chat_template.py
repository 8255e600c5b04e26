"""Asks SGLang's tokenizer for the answer marker of the target's chat template.

Invariant: a target without a chat template, or with one that fails, serves all the same. Its marker is empty.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final

from aurora_runtime.conversations import Message, Render, answer_marker

log = logging.getLogger(__name__)

Settings = dict[str, bool]
DEFAULT: Final[Settings] = {}
THINKING: Final[Settings] = {"thinking": True, "enable_thinking": True}
"""Settings of a chat template by which a request asks the target to think first."""


def marker_of(worker: Any) -> tuple[int, ...]:
    """The :func:`aurora_runtime.conversations.answer_marker` of one of SGLang's speculative workers.

    The template is the tokenizer's own. SGLang's HTTP process may use another: that of ``--chat-template``, of a
    processor, or one of its own. Where its tokens differ, no prompt has the marker.
    """
    tokenizer = getattr(getattr(worker, "target_worker", None), "tokenizer", None)
    if tokenizer is None:
        return ()
    reason = ""
    for settings in ((DEFAULT, THINKING), (DEFAULT,)):  # some tokenizers refuse settings that they do not know
        try:
            if marker := answer_marker(*(_render(tokenizer, each) for each in settings)):
                return marker
            reason = "no tokens stand before every answer"
        except Exception as error:  # a template is a program of the model's author, and may raise anything
            reason = f"{type(error).__name__}: {error}"[:200]
    log.warning(
        "the turns of a conversation are held out one by one, because of the target's chat template: %s", reason
    )
    return ()


def _render(tokenizer: Any, settings: Settings) -> Render:
    def render(messages: list[Message]) -> Sequence[int]:
        ids: Sequence[int] = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False, **settings
        )
        return ids

    return render
