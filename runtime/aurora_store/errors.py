"""Errors of the store package.

StoreError              the object store refused a call, or cannot be reached
├── ObjectMissing       there is no such object
├── ObjectExists        a create-once object exists already
├── DigestMismatch      the bytes differ from the digest in the manifest
└── StoreUnsupported    the store lacks conditional writes
"""

from __future__ import annotations


class StoreError(Exception):
    """The object store refused a call or could not be reached; the message says which call and what to check."""


class ObjectMissing(StoreError):
    """There is no object at this key."""


class ObjectExists(StoreError):
    """A create-once object exists already: another writer was first."""


class DigestMismatch(StoreError):
    """The bytes at a key differ from the digest in the manifest that names them."""


class StoreUnsupported(StoreError):
    """The store ignores ``If-None-Match: *``, so two writers could overwrite each other."""
