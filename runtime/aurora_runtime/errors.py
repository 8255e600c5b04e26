"""Errors of the runtime package.

RuntimeFault
├── StoreError              the object store refused, or is out of reach
│   ├── ObjectMissing       no such object
│   ├── ObjectExists        a create-once object is there already
│   ├── DigestMismatch      bytes differ from what the manifest promises
│   └── StoreUnsupported    the store lacks conditional writes
└── TraceFormatError        a shard's tensors contradict each other
"""

from __future__ import annotations


class RuntimeFault(Exception):
    """Base of every error raised by :mod:`aurora_runtime`."""


class StoreError(RuntimeFault):
    """The object store refused a call or could not be reached; the message says which call and what to check."""


class ObjectMissing(StoreError):
    """There is no object at this key."""


class ObjectExists(StoreError):
    """A create-once object exists already: another writer was first."""


class DigestMismatch(StoreError):
    """The bytes at a key differ from the digest in the manifest that names them."""


class StoreUnsupported(StoreError):
    """The store ignores ``If-None-Match: *``, so two writers could overwrite each other."""


class TraceFormatError(RuntimeFault):
    """A shard's tensors contradict each other."""
