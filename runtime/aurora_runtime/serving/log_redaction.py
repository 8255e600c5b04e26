"""Keeps SGLang's keys out of its log and out of ``/server_info``.

SGLang 0.5.23 logs its resolved arguments and answers ``/server_info``, an open route, with them, admin key included
(sglang/srt/entrypoints/engine.py:1185, http_server.py:863): whoever reaches the serving port could then call the admin
API. Both pass through SGLang's own redaction of watermark secrets, so that is what is hooked. The launcher checks
``/server_info`` before the pod is ready and refuses to serve a key.
"""

from __future__ import annotations

import re
from typing import Any, Final

SECRETS: Final = "sglang.srt.sampling.watermarking.core.redact_watermark_secrets"
COMMAND_LINE: Final = "sglang.srt.sampling.watermarking.core.redact_watermark_command_line"
REDACTED: Final = "<redacted>"
FIELDS: Final = frozenset({"admin_api_key", "api_key", "ssl_keyfile_password"})
_FLAG: Final = re.compile(rf"(--(?:{'|'.join(sorted(FIELDS)).replace('_', '-')})[ =])\S+")


def redacted(value: Any) -> Any:
    """A copy of nested dicts whose secret fields, and secret flags in command lines, are hidden."""
    if isinstance(value, dict):
        return {key: REDACTED if key in FIELDS and item else redacted(item) for key, item in value.items()}
    return _FLAG.sub(rf"\1{REDACTED}", value) if isinstance(value, str) else value


def after_secrets(result: Any, *_: Any, **__: Any) -> Any:
    return redacted(result)


def after_command_line(result: Any, *_: Any, **__: Any) -> Any:
    return redacted(result)
