"""Errors of the store package.

StoreError              the object store refused a call, or cannot be reached
├── ObjectMissing       there is no object at the key
├── ObjectExists        another writer created the object first
├── DigestMismatch      the bytes differ from the digest in the record that names them
├── NotRootOwner        the root belongs to another speculator, or is being deleted
└── StoreUnsupported    the store lacks conditional writes
"""

from __future__ import annotations


class StoreError(Exception):
    """The object store refused a call or could not be reached. The message names the call and says what to check."""


class ObjectMissing(StoreError):
    """There is no object at this key."""


class ObjectExists(StoreError):
    """A create-once object exists already: another writer was first."""


class DigestMismatch(StoreError):
    """The bytes at a key differ from the digest in the record that names them."""


class NotRootOwner(StoreError):
    """The root belongs to another speculator, or its owner deletes it. The message names the owner."""


class StoreUnsupported(StoreError):
    """The store ignores ``If-None-Match: *``, so two writers could overwrite each other."""
