"""Writes logs as one JSON object per line, so that a message with quotes or a traceback stays one record."""

from __future__ import annotations

import json
import logging

_VERBOSE_LIBRARIES = ("kopf", "urllib3", "botocore", "boto3", "aiohttp")


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure_logs(level: str) -> None:
    """Log to stderr at ``level`` and above. Verbose libraries log at WARNING and above only."""
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in _VERBOSE_LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)
