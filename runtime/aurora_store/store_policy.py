"""Which stores the operator uses, for speculators of which namespace: the administrator's decision.

Why: the author of a speculator chooses endpoint, bucket and prefix, and the operator connects to that store from its
own place in the network, sometimes with an identity of its own.

Invariants: the operator never signs with its own identity for an endpoint that a speculator names. When there are
rules, every use of a store must match one. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from aurora_api.v1alpha1.store import StoreSpec

_FIELDS = frozenset({"namespaces", "endpoint", "bucket", "prefix"})
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class StoreRule:
    """Speculators of ``namespaces`` may use one store."""

    namespaces: tuple[str, ...] = ()
    """Empty: every namespace."""
    endpoint: str = ""
    """Empty: AWS S3."""
    bucket: str = ""
    """Empty: every bucket."""
    prefix: str = ""
    """Folder that the speculator's root must lie in. Empty: the whole bucket."""

    def allows(self, namespace: str, store: StoreSpec, root: str) -> bool:
        """Whether a speculator of ``namespace`` may use ``store``, with its objects below ``root``."""
        return (
            (not self.namespaces or namespace in self.namespaces)
            and _same_endpoint(self.endpoint, store.endpoint or "")
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
        return cls(tuple(_rules(json.loads(rules or "[]"))))

    def refusal(self, namespace: str, store: StoreSpec, root: str) -> StoreRefusal | None:
        """Why a speculator of ``namespace`` may not use ``store``; None when it may."""
        if store.endpoint and store.credentials.secret_ref is None:
            text = (
                "with credentials.serviceAccountName the operator would sign with its own identity for the store at"
                " store.endpoint; name a Secret with keys for that store, or unset store.endpoint to use AWS S3"
            )
            return StoreRefusal("KeysRequired", text)
        if self.rules and not any(rule.allows(namespace, store, root) for rule in self.rules):
            place = f"s3://{store.bucket}/{root} at {store.endpoint or 'AWS S3'}"
            text = (
                f"speculators of the namespace {namespace} may not use {place}; use a store that your administrator"
                " allows, or ask the administrator to add this one to stores.allowed of the chart"
            )
            return StoreRefusal("StoreNotAllowed", text)
        return None


def _rules(values: Any) -> Iterable[StoreRule]:
    """The rules in parsed JSON. Raises :class:`ValueError` when ``values`` is no list of rules."""
    if not isinstance(values, list) or not all(_has_known_fields(value) for value in values):
        raise ValueError(f"it is not a list of rules with the fields {', '.join(sorted(_FIELDS))}")
    for value in values:
        namespaces = value.get("namespaces") or []
        texts = [value.get(name) or "" for name in ("endpoint", "bucket", "prefix")]
        if not isinstance(namespaces, list) or not all(isinstance(text, str) for text in (*namespaces, *texts)):
            raise ValueError("a rule's namespaces are a list of names, and its other fields are texts")
        try:
            _endpoint_parts(texts[0])
        except ValueError as error:
            raise ValueError(f"the endpoint {texts[0]!r} of a rule is no URL: {error}") from error
        yield StoreRule(tuple(namespaces), *texts)


def _has_known_fields(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() <= _FIELDS


def _same_endpoint(first: str, second: str) -> bool:
    """Whether two texts are one URL. A text that is no URL equals none."""
    try:
        return _endpoint_parts(first) == _endpoint_parts(second)
    except ValueError:
        return False


def _endpoint_parts(endpoint: str) -> tuple[str, str, int | None, str]:
    """Scheme, host, port and path, so that two spellings of one URL are equal.

    Raises :class:`ValueError` for an impossible port and for a bad address in brackets.
    """
    parts = urlsplit(endpoint)
    host, port = (parts.hostname or "").rstrip("."), parts.port
    return parts.scheme, host, _PORTS.get(parts.scheme) if port is None else port, parts.path.rstrip("/")
