"""Refuses requests that could be traced against the client's wish, before they reach SGLang's scheduler.

A request that asks not to be traced in a form that nobody understands must not be traced by mistake. A session would
put the text of an earlier turn before a later one, whatever the earlier turn asked about its traces.

The hook raises ValueError, which SGLang answers with status 400. Invariant: any other request passes unchanged. What a
request may ask of an engine is a gateway's to decide, and SGLang's to check.
"""

from __future__ import annotations

from typing import Any, Final

from aurora_runtime.request_wish import request_wish

VALIDATE_FUNCTION: Final = "sglang.srt.managers.tokenizer_manager.TokenizerManager._validate_one_request"
"""Called once for each prompt, with its token ids, before it is sent to the scheduler."""


def before_validation(_manager: Any, obj: Any, input_ids: Any) -> None:
    """Runs before ``_validate_one_request``. Raises ValueError for a session, and for an unclear wish about traces."""
    if getattr(obj, "session_params", None):
        raise ValueError("session_params: sessions are not served; send the whole conversation with each request")
    if isinstance(sampling_params := obj.sampling_params, dict):
        request_wish(sampling_params.get("custom_params"))
