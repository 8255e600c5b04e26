"""Requests that ask for more than text, and what speculation must leave of their answers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, Final

from tests.assets.sglang_server import Server

PARSERS: Final = ("--tool-call-parser", "qwen25", "--reasoning-parser", "qwen3")
"""Flags without which SGLang leaves tool calls and thoughts in the answer's text."""
_CITY: Final = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "city": {"type": "string", "maxLength": 12}},
    "required": ["name", "city"],
    "additionalProperties": False,
}
_TOOL: Final = {"type": "function", "function": {"name": "find_city", "parameters": _CITY, "strict": True}}
_ANNA: Final = "Give JSON with name and city for: Anna lives in Rome."


class _Close(float):
    """A number that equals those that rounding in another order may give."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, float) and math.isclose(self, other, abs_tol=1e-3)

    __hash__ = float.__hash__


def _chat(server: Server, text: str = _ANNA, **fields: Any) -> dict[str, Any]:
    """The only choice of a greedy chat answer."""
    body = {
        "model": "default",
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        "max_tokens": 64,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    choice: dict[str, Any] = server.post("/v1/chat/completions", body | fields)["choices"][0]
    return choice


def _json_schema(server: Server) -> Any:
    schema = {"type": "json_schema", "json_schema": {"name": "city", "schema": _CITY, "strict": True}}
    answer = json.loads(_chat(server, response_format=schema)["message"]["content"])
    assert answer.keys() == {"name", "city"}
    return answer


def _regex(server: Server) -> Any:
    return _chat(server, regex="(Rome|Paris), [0-9]{4}(, [0-9]{4}){3}")["message"]["content"]


def _tool_call(server: Server) -> Any:
    """A tool that the client requires."""
    named = {"type": "function", "function": {"name": "find_city"}}
    choice = _chat(server, "Anna lives in Rome.", tools=[_TOOL], tool_choice=named, max_tokens=96)
    assert choice["finish_reason"] == "tool_calls"
    function = choice["message"]["tool_calls"][0]["function"]
    arguments = json.loads(function["arguments"])
    assert function["name"] == "find_city"
    assert arguments.keys() == {"name", "city"}
    return arguments


def _log_probabilities(server: Server) -> Any:
    """The tokens, their log-probabilities, and the two likeliest tokens of each place."""
    entries = _chat(server, logprobs=True, top_logprobs=2, max_tokens=24)["logprobs"]["content"]
    return [(e["token"], _Close(e["logprob"]), [top["token"] for top in e["top_logprobs"]]) for e in entries]


def _reasoning(server: Server) -> Any:
    """The thoughts, apart from the answer. This model never ends them, so they are all its text."""
    message = _chat(server, chat_template_kwargs={"enable_thinking": True}, max_tokens=24)["message"]
    assert message["reasoning_content"]
    return message


def _stop_text(server: Server) -> Any:
    choice = _chat(server, "Count from one to ten.", stop=["5", "five"])
    assert not {"5", "five"} & set(choice["message"]["content"].split())
    return choice["message"]["content"], choice["finish_reason"]


def _logit_bias(server: Server) -> Any:
    """The first token of the plain answer is forbidden: an opening brace."""
    return _chat(server, logit_bias={"107": -100}, max_tokens=24)["message"]["content"]


def _several_answers(server: Server) -> Any:
    body = {"model": "default", "prompt": "The capital of France is", "temperature": 0, "max_tokens": 16, "n": 2}
    first, second = (choice["text"] for choice in server.post("/v1/completions", body)["choices"])
    assert first == second
    return first


KINDS: Final[dict[str, Callable[[Server], Any]]] = {
    "JSON schema": _json_schema,
    "regular expression": _regex,
    "tool call": _tool_call,
    "log-probabilities": _log_probabilities,
    "reasoning": _reasoning,
    "stop text": _stop_text,
    "logit bias": _logit_bias,
    "several answers": _several_answers,
}
"""Each asks one request and returns what speculation must not change."""
