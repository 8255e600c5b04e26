"""The S3 store that serving, training, validation and the operator share.

Why a package of its own: the operator uses the store without importing torch or SGLang.

Invariants: data is written first, the record that names it last. Records are create-once (``If-None-Match: *``). Every
read of data is checked against the digest in the record that names it.
"""

from aurora_store.keys import Keys
from aurora_store.objects import ObjectStore, StoreConfig
from aurora_store.registry import Registry
from aurora_store.root_ownership import FencedObjectStore

__all__ = ["FencedObjectStore", "Keys", "ObjectStore", "Registry", "StoreConfig"]
