"""Asks SGLang's tokenizer for the answer marker of the target's chat template.

Invariant: a target without a chat template, or with one that fails, serves all the same. Its marker is empty.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from aurora_runtime.conversations import Message, answer_marker

log = logging.getLogger(__name__)


def marker_of(worker: Any) -> tuple[int, ...]:
    """The :func:`aurora_runtime.conversations.answer_marker` of one of SGLang's speculative workers.

    The template is the one that comes with the tokenizer. SGLang gives ``--chat-template`` to another process.
    """
    tokenizer = getattr(getattr(worker, "target_worker", None), "tokenizer", None)
    if tokenizer is None:
        return ()

    def render(messages: list[Message]) -> Sequence[int]:
        ids: Sequence[int] = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        return ids

    try:
        return answer_marker(render)
    except Exception:  # a template is a program of the model's author, and may raise anything
        log.info("the target's chat template gives no answer marker, so each request is held out or not by itself")
        return ()
