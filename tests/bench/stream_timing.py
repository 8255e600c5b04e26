"""Times streamed requests: milliseconds per model step without speculation, per verify round with it.

Compared servers answer in turn, so that a noisy machine is equally noisy to all of them. The prefill is not timed: the
clock runs from a request's first output to its last.
"""

from __future__ import annotations

import contextlib
import http
import http.client
import json
import time
from collections.abc import Mapping
from typing import Any

from aurora_runtime.errors import EngineFault
from aurora_runtime.request_wish import PARAMETER

CONCURRENCIES = (1, 4)
REQUEST_TIMEOUT_SECONDS = 300
PROMPTS = (
    "Write a short story about a lighthouse keeper who finds a map.",
    "Explain how a bicycle stays upright, for a child.",
    "List some ways in which a small town could save water.",
    "Describe a walk through a market early in the morning.",
)


def time_stream(
    port: int, prompt: str, tokens: int, request_id: str | None = None, wish: Mapping[str, bool] | None = None
) -> float:
    """Milliseconds per step of a streamed greedy answer of exactly ``tokens`` tokens from the server on ``port``.

    A step is a model step without speculation, and a verify round with speculation.

    Args:
        wish: what the request asks for, such as no trace (aurora_runtime/request_wish.py).

    Raises:
        EngineFault: the request failed, streamed nothing, or sent its whole answer at once.
    """
    body: dict[str, Any] = {
        "text": prompt,
        "rid": request_id,
        "stream": True,
        "sampling_params": {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True},
    }
    if wish:
        body["sampling_params"]["custom_params"] = {PARAMETER: dict(wish)}
    first_time, first_meta = 0.0, dict[str, Any]()
    last_time, last_meta = 0.0, dict[str, Any]()
    with contextlib.closing(
        http.client.HTTPConnection("127.0.0.1", port, timeout=REQUEST_TIMEOUT_SECONDS)
    ) as connection:
        connection.request("POST", "/generate", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != http.HTTPStatus.OK:
            raise EngineFault(f"/generate on port {port} answered with status {response.status}")
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            last_time, last_meta = time.perf_counter(), json.loads(line[6:])["meta_info"]
            if not first_meta:
                first_time, first_meta = last_time, last_meta
    if not first_meta:
        raise EngineFault(f"/generate on port {port} streamed nothing")
    steps = last_meta["completion_tokens"] - first_meta["completion_tokens"]
    if "spec_verify_ct" in last_meta:
        steps = last_meta["spec_verify_ct"] - first_meta.get("spec_verify_ct", 0)
    if not steps:
        raise EngineFault(f"/generate on port {port} sent the whole answer at once, so there is nothing to time")
    return 1000 * (last_time - first_time) / int(steps)
