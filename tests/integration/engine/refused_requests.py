"""Requests that would end or hang an engine, or make it forget who refused traces, and the status of each answer."""

from __future__ import annotations

from typing import Any

_GENERATE: dict[str, dict[str, Any]] = {
    "beyond the vocabulary": {"input_ids": [1, 2**31 - 1]},
    "negative": {"input_ids": [-1, 1]},
    "in a batch": {"input_ids": [[1, 2], [1, 10**9]]},
    "log-probabilities": {"input_ids": [1, 2], "return_logprob": True, "top_logprobs_num": 10**7},
    "answers": {"text": "hello", "sampling_params": {"n": 10**8}},
    "top k": {"text": "hello", "sampling_params": {"top_k": 2**31}},
    "stop": {"text": "hello", "sampling_params": {"stop_token_ids": [10**7], "min_new_tokens": 1}},
    "bias": {"text": "hello", "sampling_params": {"logit_bias": {"5": "x"}}},
    "session": {"text": "hello", "session_params": {"id": []}},
    "regular expression": {"text": "hello", "sampling_params": {"stop_regex": "(a+)+$"}},
}
_CHAT: dict[str, dict[str, Any]] = {
    "log-probabilities of a chat": {"logprobs": True, "top_logprobs": 257},
    "regular expression of a chat": {"stop_regex": "(a+)+$"},
}
_COMPLETION: dict[str, dict[str, Any]] = {
    "log-probabilities of a text": {"logprobs": 257},
    "regular expressions of a text": {"stop_regex": ["(a+)+$"]},
}
_MESSAGES = [{"role": "user", "content": "hello"}]
_CLOSED: dict[str, dict[str, Any]] = {
    "/open_session": {"capacity_of_str_len": 10},
    "/close_session": {"session_id": "a"},
    "/vertex_generate": {
        "instances": [{"text": "hello"}],
        "parameters": {"sampling_params": {"json_schema": {"a": 1}}},
    },
    "/api/chat": {"model": "default", "messages": _MESSAGES, "options": {"stop": [["a", "b"]]}},
    "/api/generate": {"model": "default", "prompt": "hello", "options": {"stop": [["a", "b"]]}},
}

REFUSED: dict[str, tuple[str, dict[str, Any], int]] = {
    **{name: ("/generate", body, 400) for name, body in _GENERATE.items()},
    **{
        name: ("/v1/chat/completions", {"model": "default", "messages": _MESSAGES, **body}, 400)
        for name, body in _CHAT.items()
    },
    **{
        name: ("/v1/completions", {"model": "default", "prompt": "hello", **body}, 400)
        for name, body in _COMPLETION.items()
    },
    **{route: (route, body, 404) for route, body in _CLOSED.items()},
}
"""For each name the route, the body and the status."""
