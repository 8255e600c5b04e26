"""Answers of a server that does not speculate. Speculation, a swap or a controller must change none of them.

The server computes in fp32, so that answers can be compared for equality. In bf16, near ties may fall either way.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

from tests.assets.model import ensure_model
from tests.assets.random_draft import REPEATING_TEXT
from tests.assets.sglang_server import Server, sglang_server
from tests.integration.engine.request_kinds import KINDS, PARSERS
from tests.integration.training.captured_traces import chat_prompt, load_tokenizer

FP32 = ("--dtype", "float32")
QUESTIONS = (
    "What is the capital of France?",
    "Write one sentence on rivers.",
    "Give JSON with name and city for: Anna lives in Rome.",
    "Count from one to ten.",
)
CHAT_TOKENS = 48
"""Most tokens of a chat answer, which ends at the model's end of text."""
FIXED_TOKENS = 24
"""Tokens of each answer to :func:`token_prompts`, whatever the model says."""


@dataclass(frozen=True)
class PlainAnswers:
    """Answers of a server without speculation."""

    chat: list[str]
    """To :data:`QUESTIONS`."""
    tokens: list[list[int]]
    """To :func:`token_prompts`."""
    kinds: dict[str, Any]
    """To the requests of :data:`KINDS`."""


def chat(server: Server, question: str) -> str:
    """The greedy chat answer."""
    body = {
        "model": "default",
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": CHAT_TOKENS,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    text: str = server.post("/v1/chat/completions", body)["choices"][0]["message"]["content"]
    return text


def chat_answers(server: Server) -> list[str]:
    """The answers to all questions, asked one by one and then at once, because batching must not change them."""
    alone = [chat(server, question) for question in QUESTIONS]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda question: chat(server, question), QUESTIONS))
    assert together == alone
    return alone


@cache
def token_prompts() -> list[list[int]]:
    """Token ids of a text that repeats itself and of two questions."""
    target = ensure_model()
    repeating = [int(token) for token in load_tokenizer(target).encode(REPEATING_TEXT, add_special_tokens=False)]
    return [repeating, chat_prompt(target, QUESTIONS[3]), chat_prompt(target, QUESTIONS[2])]


def token_answer(server: Server, prompt: list[int]) -> list[int]:
    """The greedy answer of :data:`FIXED_TOKENS` tokens."""
    sampling = {"temperature": 0, "max_new_tokens": FIXED_TOKENS, "ignore_eos": True}
    output: list[int] = server.post("/generate", {"input_ids": prompt, "sampling_params": sampling})["output_ids"]
    return output


def plain_answers() -> PlainAnswers:
    """The answers of a server without speculation, which has ended when this function returns."""
    with sglang_server(ensure_model(), extra_args=[*FP32, *PARSERS], stop_seconds=0) as server:
        tokens = [token_answer(server, prompt) for prompt in token_prompts()]
        return PlainAnswers(chat_answers(server), tokens, {kind: ask(server) for kind, ask in KINDS.items()})
