"""Reads the refusals in the answer to one request that deletes many objects.

Invariant: an error from the store is matched with an object that was asked for. Any other key in the answer is
untrusted text, so it is counted and never repeated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aurora_store.errors import DEFAULT_HINT, ERROR_HINTS, AccessRefused, StoreError, bounded_text
from aurora_store.s3_calls.call_errors import access_hint, is_access_code, is_unknown_call_code


@dataclass(frozen=True)
class RefusedDeletions:
    """Objects of one request that the store did not delete."""

    count: int
    indexes: frozenset[int]
    """Their places in the request."""
    first: int | None
    """Place of the first one. None: the store named objects that the request did not."""
    code: str
    """The store's code for the first one."""
    temporary_code: str = ""
    """The code of one that the store may delete later. Empty when it refused all for good."""


def refused_deletions(asked: Sequence[Mapping[str, str]], answer: Mapping[str, Any]) -> RefusedDeletions | None:
    """The refusals that ``answer`` has for the objects in ``asked``. None: it has none."""
    errors: Sequence[Mapping[str, str]] = answer.get("Errors") or ()
    if not errors:
        return None
    places = {(item["Key"], item.get("VersionId")): place for place, item in enumerate(asked)}
    named = [_place(places, error.get("Key", ""), error.get("VersionId")) for error in errors]
    first = min((place for place in named if place is not None), default=None)
    code = errors[named.index(first)].get("Code", "")
    indexes = frozenset(place for place in named if place is not None)
    temporary = next((code for code in (error.get("Code", "") for error in errors) if not _is_final(code)), "")
    return RefusedDeletions(len(errors), indexes, first, code, temporary)


def _is_final(code: str) -> bool:
    """Whether the store refuses for good. With such a code it also refuses to delete what a lock holds."""
    return is_access_code(code) or is_unknown_call_code(code)


def _place(places: Mapping[tuple[str, str | None], int], key: str, version_id: str | None) -> int | None:
    """Stores name a version even where the request named none."""
    return places.get((key, version_id), places.get((key, None)))


def shown_code(code: str) -> str:
    """A code of the store that a message may repeat."""
    return code if code in ERROR_HINTS else "an unknown error"


def deletion_error(key: str, count: int, code: str) -> StoreError:
    """The error for ``count`` objects that the store did not delete.

    Args:
        key: the first of them, or an empty text when it is not known.
        code: the store's code for the first one.
    """
    call = f"delete {key or 'objects'}"
    more = f" ({count} objects were refused)"
    if is_access_code(code):
        return AccessRefused(bounded_text(f"{call}: {code}; {access_hint('DeleteObjects')}{more}"))
    return StoreError(bounded_text(f"{call}: {shown_code(code)}; {ERROR_HINTS.get(code, DEFAULT_HINT)}{more}"))
