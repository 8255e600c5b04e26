"""The S3-backed store that serving, training, validation and the operator share.

Invariants: data first, manifest last; records are create-once by ``If-None-Match: *``; every read of data is checked
against the digest in the manifest that names it.
"""

from aurora_store.keys import Keys
from aurora_store.objects import ObjectStore, StoreConfig
from aurora_store.registry import Registry

__all__ = ["Keys", "ObjectStore", "Registry", "StoreConfig"]
