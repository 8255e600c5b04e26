"""Where the objects of one speculator are, and how the store is reached."""

from __future__ import annotations

from dataclasses import dataclass

from aurora_protocol.pod_settings import StoreSettings


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
    refuses_link_local: bool = False
    """Whether ``endpoint`` may not lead to a link-local address, because somebody else chose it."""

    def __repr__(self) -> str:
        return f"StoreConfig(bucket={self.bucket!r}, root={self.root!r}, endpoint={self.endpoint!r})"

    @classmethod
    def of(cls, settings: StoreSettings) -> StoreConfig:
        """The store of a pod. boto3 finds the credentials itself (``AWS_*`` variables or workload identity).

        Every setting is a field of the same name here.
        """
        return cls(**dict(settings))
