"""Signatures of records in the store: message authentication codes (HMAC-SHA256) with keys that no bucket writer has.

Invariants:

- A signature covers the place of the record (the speculator's root and the key below it) and its whole content. A
  record that was moved to another number, version or root is therefore not signed.
- What was verified is what is parsed: :func:`verified` returns the bytes that the signature covers. A record that two
  parsers would read differently deceives nobody.
- Unknown fields are covered too, so the writer and the reader may have different versions.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from aurora_protocol.errors import InvalidRecord, UnsignedRecord

SIGNATURE: Final = "signature"
"""Field of a stored record: its signature, in hexadecimal."""


class KeyName(StrEnum):
    """The keys of one speculator, named after what they sign. Also the items of the Secret with the keys."""

    CHANNEL = "channel-key"
    """For records of the channel. The operator signs, and the init containers of inference pods verify."""
    EVIDENCE = "evidence-key"
    """For evidence. Validators sign, and the operator verifies."""


SigningKeys = Mapping[KeyName, bytes]


def keys_in(folder: Path) -> dict[KeyName, bytes]:
    """The keys whose files the kubelet mounted in ``folder``."""
    return {name: (folder / name.value).read_bytes().strip() for name in KeyName if (folder / name.value).is_file()}


def signed(record: bytes, place: str, key: bytes) -> bytes:
    """``record``, a JSON object, with its signature.

    Args:
        place: the root and the key of the record.
    """
    content = _content(record)
    content.pop(SIGNATURE, None)
    signature = _signature(_canonical(content), place, key)
    return json.dumps({**content, SIGNATURE: signature}, indent=1, ensure_ascii=False).encode()


def verified(data: bytes, place: str, key: bytes) -> bytes:
    """The record in ``data`` without its signature.

    Raises :class:`UnsignedRecord` unless ``data`` was signed at ``place`` with ``key``, and :class:`InvalidRecord` when
    ``data`` is no JSON object.
    """
    content = _content(data)
    given = content.pop(SIGNATURE, None)
    covered = _canonical(content)
    if not isinstance(given, str) or not given.isascii():
        raise UnsignedRecord("it is not signed")
    if not hmac.compare_digest(given, _signature(covered, place, key)):
        raise UnsignedRecord("its signature is not of this speculator, of this place, or of this content")
    return covered


def _content(data: bytes) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        raise InvalidRecord("it is not valid JSON") from None
    if not isinstance(content, dict):
        raise InvalidRecord("it is not a JSON object")
    return content


def _canonical(content: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    except (ValueError, RecursionError):
        raise InvalidRecord("it is not valid JSON") from None


def _signature(covered: bytes, place: str, key: bytes) -> str:
    return hmac.digest(key, f"aurora record 2\n{place}\n".encode() + covered, "sha256").hex()
