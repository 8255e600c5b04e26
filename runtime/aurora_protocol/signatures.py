"""Signatures of records in the store: message authentication codes (HMAC-SHA256) with keys that no bucket writer has.

Why codes and not public keys: the images of the operator and of the agent hold no library with public keys. So each
reader has a key of its own, and the writer signs a record once for each reader. Whoever takes the key from a reader can
deceive readers of this kind only.

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
from typing import Any, Final

from aurora_protocol.errors import InvalidRecord, UnsignedRecord

SIGNATURES: Final = "signatures"
"""Field of a stored record: the name of a key -> the signature with this key, in hexadecimal."""


class KeyName(StrEnum):
    """The keys of one speculator, named after who verifies with them. Also the items of the Secret with the keys."""

    OPERATOR = "operator-key"
    """For records of the channel, as the operator reads them. No pod has this key. The others are derived from it."""
    STAGING = "staging-key"
    """For records of the channel, as the init container of an inference pod reads them."""
    EVIDENCE = "evidence-key"
    """For evidence and cached baselines. Validators sign with this key, and the operator verifies."""


CHANNEL_KEYS: Final = frozenset({KeyName.OPERATOR, KeyName.STAGING})
EVIDENCE_KEYS: Final = frozenset({KeyName.EVIDENCE})
SigningKeys = Mapping[KeyName, bytes]


def all_keys(operator_key: bytes) -> dict[KeyName, bytes]:
    """Every key of a speculator. Nobody can compute the operator's key back from another one."""
    derived = {
        name: hmac.digest(operator_key, f"aurora key 1\n{name.value}".encode(), "sha256").hex().encode()
        for name in (KeyName.STAGING, KeyName.EVIDENCE)
    }
    return {KeyName.OPERATOR: operator_key, **derived}


def signed(record: bytes, place: str, keys: SigningKeys) -> bytes:
    """``record`` with a signature for each of ``keys``.

    Args:
        record: a JSON object.
        place: the root and the key of the record.
    """
    content = _content(record)
    covered = _canonical(content)
    signatures = {name.value: _signature(covered, place, name, key).hex() for name, key in keys.items()}
    return json.dumps({**content, SIGNATURES: signatures}, indent=1, ensure_ascii=False).encode()


def verified(data: bytes, place: str, name: KeyName, key: bytes) -> bytes:
    """The record in ``data`` without its signatures.

    Raises :class:`UnsignedRecord` unless ``data`` was signed at ``place`` with ``key``, and :class:`InvalidRecord` when
    ``data`` is no JSON object.
    """
    covered, signatures = unsigned_parts(data)
    given = signatures.get(name.value)
    if not isinstance(given, str) or not given.isascii():
        raise UnsignedRecord("it is not signed")
    if not hmac.compare_digest(given, _signature(covered, place, name, key).hex()):
        raise UnsignedRecord("its signature is not of this speculator, of this place, or of this content")
    return covered


def unsigned_parts(data: bytes) -> tuple[bytes, Mapping[str, Any]]:
    """The record in ``data`` without its signatures, and the signatures. Nothing is verified.

    Raises :class:`InvalidRecord` when ``data`` is no JSON object.
    """
    content = _content(data)
    signatures = content.pop(SIGNATURES, None)
    return _canonical(content), signatures if isinstance(signatures, dict) else {}


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


def _signature(covered: bytes, place: str, name: KeyName, key: bytes) -> bytes:
    return hmac.digest(key, f"aurora record 1\n{name.value}\n{place}\n".encode() + covered, "sha256")
