"""Checks that a record's name, number and content belong together, and names the record that is wrong."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from aurora_protocol.errors import InvalidRecord
from aurora_store.errors import bounded_text
from aurora_store.keys import MAX_NUMBER_GAP, in_sequence, number_of


def in_sequence_keys(listed: Iterable[str], known: str = "", *, max_gap: int = MAX_NUMBER_GAP) -> tuple[str, ...]:
    """The keys of records among ``listed``, in order of their numbers.

    Args:
        known: the key of the last known record; empty without one.
        max_gap: most numbers that the sequence may skip.

    Raises :class:`InvalidRecord` for a record that has no number, or a number that is out of sequence after ``known``.
    """
    keys = sorted((key for key in listed if key.endswith(".json")), key=number_of)
    sequence = in_sequence(map(number_of, keys), number_or_zero(known), max_gap=max_gap)
    if len(sequence) < len(keys):
        raise InvalidRecord(f"{keys[len(sequence)]} is out of sequence; find out who wrote it, and delete it")
    return tuple(keys)


@contextlib.contextmanager
def naming(key: str) -> Iterator[None]:
    """Put ``key`` before the text of an :class:`InvalidRecord`."""
    try:
        yield
    except InvalidRecord as error:
        raise InvalidRecord(bounded_text(f"{key}: {error}")) from error


def require_own_key(key: str, own: str) -> None:
    """Raise :class:`InvalidRecord` unless the record at ``key`` has the numbers of this key."""
    if own != key:
        raise InvalidRecord(f"{key}: the record's own numbers belong to {own}")


def number_or_zero(key: str) -> int:
    return number_of(key) if key else 0
