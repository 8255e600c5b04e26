"""The answer marker that SGLang's tokenizer gives, whatever its template does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from aurora_runtime.conversations import Message, beginning
from aurora_runtime.serving.chat_template import marker_of

END, ASSISTANT, QUIET, THINK = 2, 6, 7, 8


class Tokenizer:
    """A template whose prompts end with how to answer. ``refuses`` settings that it does not know."""

    def __init__(self, *, refuses: bool = False) -> None:
        self._refuses = refuses

    def apply_chat_template(
        self,
        messages: list[Message],
        *,
        add_generation_prompt: bool,
        tokenize: bool,
        return_dict: bool,
        **settings: bool,
    ) -> list[int]:
        assert (add_generation_prompt, tokenize, return_dict) == (True, True, False)
        if settings and self._refuses:
            raise TypeError("unexpected settings")
        before = {"user": [], "assistant": [ASSISTANT, QUIET]}
        turns = [[*before[m["role"]], *m["content"].encode(), END] for m in messages]
        return [*(token for turn in turns for token in turn), ASSISTANT, THINK if settings else QUIET]


def worker(tokenizer: Any) -> Any:
    return SimpleNamespace(target_worker=SimpleNamespace(tokenizer=tokenizer))


def test_the_marker_fits_requests_that_think_and_those_that_do_not() -> None:
    marker = marker_of(worker(Tokenizer()))
    assert marker == (END, ASSISTANT)
    assert beginning([97, END, ASSISTANT, THINK], marker) == [97]


def test_a_tokenizer_that_refuses_settings_has_the_marker_of_its_default() -> None:
    assert marker_of(worker(Tokenizer(refuses=True))) == (END, ASSISTANT, QUIET)


@pytest.mark.parametrize(
    "without", [None, SimpleNamespace(), worker(None)], ids=["a worker", "a target", "a tokenizer"]
)
def test_without_a_tokenizer_there_is_no_marker(without: Any) -> None:
    assert marker_of(without) == ()


def test_a_template_that_fails_is_named_and_serves_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def apply_chat_template(self, *_: Any, **__: Any) -> list[int]:
            raise ValueError("no chat template")

    assert marker_of(worker(Broken())) == ()
    assert "no chat template" in caplog.text
