"""Which stores the operator uses, for speculators of which namespace: the administrator's decision.

Why: the author of a speculator chooses endpoint, bucket and prefix, and the operator connects to that store from its
own place in the network, sometimes with an identity of its own.

Invariants: the operator never signs with its own identity for an endpoint that a speculator names, nor for the path of
another namespace. When there are rules, every use of a store must match one. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ConfigDict, TypeAdapter

from aurora_api.v1alpha1.store import StoreSpec


@dataclass(frozen=True)
class StoreRule:
    """Speculators of ``namespaces`` may use one store."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    namespaces: tuple[str, ...] = ()
    """Empty: every namespace."""
    endpoint: str = ""
    """As the specs spell it. Empty: AWS S3."""
    bucket: str = ""
    """Empty: every bucket."""
    prefix: str = ""
    """Folder that the speculator's root must lie in. Empty: the whole bucket."""

    def allows(self, namespace: str, store: StoreSpec, root: str) -> bool:
        """Whether a speculator of ``namespace`` may use ``store``, with its objects below ``root``."""
        return (
            (not self.namespaces or namespace in self.namespaces)
            and self.endpoint.rstrip("/") == (store.endpoint or "").rstrip("/")
            and self.bucket in ("", store.bucket)
            and f"{root}/".startswith(f"{self.prefix.strip('/')}/" if self.prefix.strip("/") else "")
        )


@dataclass(frozen=True)
class StoreRefusal:
    """Why the operator does not use a store: reason and message of the condition StorageReady."""

    reason: str
    message: str


@dataclass(frozen=True)
class StorePolicy:
    """What the chart's value ``stores.allowed`` says."""

    rules: tuple[StoreRule, ...] = ()
    """Empty: every store."""

    @classmethod
    def parse(cls, rules: str) -> StorePolicy:
        """The policy from a JSON list of objects with the fields of :class:`StoreRule`. Empty: no rules.

        Raises :class:`ValueError`, whose message says what is wrong.
        """
        return cls(TypeAdapter(tuple[StoreRule, ...]).validate_json(rules or "[]"))

    def refusal(self, namespace: str, store: StoreSpec, root: str) -> StoreRefusal | None:
        """Why a speculator of ``namespace`` may not use ``store``; None when it may."""
        if store.endpoint and store.credentials.secret_ref is None:
            text = (
                "with credentials.serviceAccountName the operator would sign with its own identity for the store at"
                " store.endpoint; name a Secret with keys for that store, or unset store.endpoint to use AWS S3"
            )
            return StoreRefusal("KeysRequired", text)
        own_path = (store.path or f"{namespace}/").startswith(f"{namespace}/")
        if store.credentials.service_account_name is not None and not own_path:
            text = (
                f"with credentials.serviceAccountName the operator signs with its own identity, so store.path must"
                f" begin with {namespace}/; use credentials.secretRef for a path of another namespace"
            )
            return StoreRefusal("StoreNotAllowed", text)
        if self.rules and not any(rule.allows(namespace, store, root) for rule in self.rules):
            place = f"s3://{store.bucket}/{root} at {store.endpoint or 'AWS S3'}"
            text = (
                f"speculators of the namespace {namespace} may not use {place}; use a store that your administrator"
                " allows, or ask the administrator to add this one to stores.allowed of the chart"
            )
            return StoreRefusal("StoreNotAllowed", text)
        return None
