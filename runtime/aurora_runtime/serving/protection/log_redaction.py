"""Keeps SGLang's keys out of its log and out of ``/server_info``, and clients' schemas out of its log.

SGLang 0.5.23 logs its resolved arguments, and shows them on the open route ``/server_info``, admin key included
(sglang/srt/entrypoints/engine.py:1185, http_server.py:863). Anybody who reaches the serving port could then call the
admin API. Both texts pass through SGLang's own redaction of watermark secrets, so our hooks run after that redaction.
The launcher checks ``/server_info`` before the pod is ready, and ends an engine that shows its key.

SGLang also logs a client's schema, grammar or regular expression with the whole text: when the text cannot be
compiled, and when an answer does not fit it. A client's text may be private, so it is cut off in every message of
SGLang. The client still gets the full message.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any, Final

SECRETS_FUNCTION: Final = "sglang.srt.sampling.watermarking.core.redact_watermark_secrets"
COMMAND_LINE_FUNCTION: Final = "sglang.srt.sampling.watermarking.core.redact_watermark_command_line"
REPLACEMENT: Final = "<redacted>"
SECRET_FIELDS: Final = frozenset({"admin_api_key", "api_key", "ssl_keyfile_password"})
_SECRET_FLAG: Final = re.compile(rf"(--(?:{'|'.join(sorted(SECRET_FIELDS)).replace('_', '-')})[ =])\S+")
_CLIENT_TEXT: Final = re.compile(
    r"((?:key_string|serialized_grammar|grammar_key|regex)=|skip invalid regex: |invalid stop_regex |"
    r"Grammar compilation (?:raised an exception|failed): |Failed to compile \w+ grammar: |"
    r"Grammar accept_token failed|Tokens? not accepted|Invalid key_type: ).*",
    re.DOTALL,
)
"""The beginning of a client's text in a message, and all that follows."""
_FORMATTER: Final = logging.Formatter()


def redact(value: Any) -> Any:
    """A copy of nested dicts with secret fields and the values of secret command-line flags replaced."""
    if isinstance(value, dict):
        return {key: REPLACEMENT if key in SECRET_FIELDS and item else redact(item) for key, item in value.items()}
    return _SECRET_FLAG.sub(rf"\1{REPLACEMENT}", value) if isinstance(value, str) else value


class _CuttingFactory:
    """Makes log records as ``former`` does, without clients' texts in those of SGLang."""

    def __init__(self, former: Callable[..., logging.LogRecord]) -> None:
        self._former = former

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record = self._former(*args, **kwargs)
        if record.name.startswith("sglang"):
            if record.exc_info:
                record.exc_text = _without_client_text(_FORMATTER.formatException(record.exc_info))
            try:
                text = record.getMessage()
            except (TypeError, ValueError, KeyError):  # the arguments do not fit, and a handler would show them
                text, record.args = str(record.msg), ()
            if (cut := _without_client_text(text)) != text:
                record.msg, record.args = cut, ()
        return record


def hide_client_texts() -> None:
    """Cut clients' texts out of the messages of SGLang in this process. A second call changes nothing."""
    if not isinstance(former := logging.getLogRecordFactory(), _CuttingFactory):
        logging.setLogRecordFactory(_CuttingFactory(former))


def _without_client_text(text: str) -> str:
    return _CLIENT_TEXT.sub(rf"\1{REPLACEMENT}", text)


def after_redaction(result: Any, *_: Any, **__: Any) -> Any:
    """The hook after both functions of SGLang's own redaction."""
    return redact(result)
