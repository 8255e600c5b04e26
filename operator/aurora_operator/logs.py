"""Logs as one JSON object a line, so that a message with quotes or a traceback stays one event."""

from __future__ import annotations

import json
import logging

_CHATTY = ("kopf", "urllib3", "botocore", "boto3", "aiohttp")


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S"),
            "level": record.levelname,
            "from": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure_logs(level: str) -> None:
    """Log to stderr; libraries only what is wrong."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
