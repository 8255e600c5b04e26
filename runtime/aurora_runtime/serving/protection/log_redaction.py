"""Keeps SGLang's keys out of its log and out of ``/server_info``.

SGLang 0.5.23 logs its resolved arguments, and shows them on the open route ``/server_info``, admin key included
(sglang/srt/entrypoints/engine.py:1185, http_server.py:863). Anybody who reaches the serving port could then call the
admin API. Both texts pass through SGLang's own redaction of watermark secrets, so our hooks run after that redaction.
The launcher checks ``/server_info`` before the pod is ready, and ends an engine that shows its key.
"""

from __future__ import annotations

import re
from typing import Any, Final

SECRETS_FUNCTION: Final = "sglang.srt.sampling.watermarking.core.redact_watermark_secrets"
COMMAND_LINE_FUNCTION: Final = "sglang.srt.sampling.watermarking.core.redact_watermark_command_line"
REPLACEMENT: Final = "<redacted>"
SECRET_FIELDS: Final = frozenset({"admin_api_key", "api_key", "ssl_keyfile_password"})
_SECRET_FLAG: Final = re.compile(rf"(--(?:{'|'.join(sorted(SECRET_FIELDS)).replace('_', '-')})[ =])\S+")


def redact(value: Any) -> Any:
    """A copy of nested dicts with secret fields and the values of secret command-line flags replaced."""
    if isinstance(value, dict):
        return {key: REPLACEMENT if key in SECRET_FIELDS and item else redact(item) for key, item in value.items()}
    return _SECRET_FLAG.sub(rf"\1{REPLACEMENT}", value) if isinstance(value, str) else value


# Hooks: SGLang passes the result of the original function first.


def after_secrets(result: Any, *_: Any, **__: Any) -> Any:
    return redact(result)


def after_command_line(result: Any, *_: Any, **__: Any) -> Any:
    return redact(result)
