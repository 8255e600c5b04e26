"""Where the objects of one speculator are, and how the store is reached."""

from __future__ import annotations

from dataclasses import dataclass

from aurora_api.v1alpha1.store import Encryption
from aurora_protocol.pod_settings import StoreSettings
from aurora_store.policy.address_policy import AddressPolicy


@dataclass(frozen=True)
class StoreConfig:
    """The bucket and the root of one speculator.

    Without ``access_key`` and ``secret_key``, boto3 looks for credentials itself. ``repr`` never shows them.
    """

    bucket: str
    root: str
    endpoint: str | None = None
    region: str | None = None
    access_key: str | None = None
    secret_key: str | None = None
    owner: str | None = None
    """Owner id of the speculator that restored the root. None: the speculator that the root is named after."""
    addresses: AddressPolicy | None = None
    """Addresses that ``endpoint`` may lead to. None: any. Without ``endpoint`` it has no effect."""
    encryption: Encryption | None = None
    """Server-side encryption that every write asks for. None: the bucket's default."""

    def __repr__(self) -> str:
        return f"StoreConfig(bucket={self.bucket!r}, root={self.root!r}, endpoint={self.endpoint!r})"

    @classmethod
    def of(cls, settings: StoreSettings) -> StoreConfig:
        """The store of a pod. boto3 finds the credentials itself (``AWS_*`` variables or workload identity).

        Every setting is a field of the same name here.
        """
        return cls(**dict(settings))
