"""Errors of the store package. All are of :class:`StoreError`."""

from __future__ import annotations

MAX_ERROR_CHARACTERS = 300
"""Longest text of an error. A text may quote what others chose, such as a key, and the operator copies it into the
status."""


def bounded_text(text: str, limit: int = MAX_ERROR_CHARACTERS) -> str:
    """``text`` on one line, without control characters and at most ``limit`` characters long."""
    shown = "".join(character if character.isprintable() else " " for character in text[: limit + 1])
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"


class StoreError(Exception):
    """The object store refused a call or could not be reached. The message names the call and says what to check."""


class ObjectMissing(StoreError):
    """There is no object at this key. The store itself said so, with a code of S3."""


class DraftExpired(ObjectMissing):
    """The weights of a version were deleted on purpose (``training.draftHistoryLimit``)."""


class ObjectExists(StoreError):
    """A create-once object exists already: another writer was first."""


class ObjectRefused(StoreError):
    """The store refuses one object, and may give others: a right is missing, or it is archived, or its key is off."""


class ObjectArchived(ObjectRefused):
    """The object lies in an archive class, from which nothing can be read before somebody restores it."""


class DigestMismatch(StoreError):
    """The bytes at a key differ from the digest in the record that names them."""


class ObjectTooLarge(DigestMismatch):
    """The object is larger than the record that names it says, or than any record may be. Reading it was stopped."""


class AddressRefused(StoreError):
    """The endpoint leads to a link-local address, such as a node's metadata service. No connection was opened."""


class CredentialsMissing(StoreError):
    """Neither the settings nor the environment hold credentials, or the workload identity gave none."""


class CallUnavailable(StoreError):
    """The store does not know a call. Aurora can do without some."""


class NotRootOwner(StoreError):
    """The root belongs to another speculator, or its owner deletes it. The message names the owner."""


class StoreInterrupted(StoreError):
    """The call was given up, because nobody waits for its answer any more, or because its time is over."""


class StoreUnsupported(StoreError):
    """The store ignores ``If-None-Match: *``, so two writers could overwrite each other."""
