"""Opens a speculator's store with the user's own credentials, or with those of its Secret if the user says so.

Why two ways: whoever creates a speculator chooses its endpoint. Requests that are signed with the user's own identity
must not go to an address that somebody else chose.

Invariants:

- No Secret is read unless the user asks for it, and then with the user's rights on Secrets.
- The user's own credentials go to AWS S3, or to an endpoint that the user names. The speculator's endpoint gets only
  the keys that the speculator's author gave for it.
- Keys are never printed.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Final

from aurora_api.v1alpha1.store import ENDPOINT_PATTERN, StoreSpec
from aurora_cli.cluster import Cluster
from aurora_cli.errors import Forbidden, NotFound, StoreFault
from aurora_cli.speculator import Speculator
from aurora_store import ObjectStore, StoreConfig
from aurora_store.errors import CredentialsMissing, StoreError
from aurora_store.keys import root

CALL_SECONDS: Final = 20.0
ATTEMPTS: Final = 2
KEY_NAMES: Final = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


def open_store(cluster: Cluster, speculator: Speculator, *, endpoint: str | None, use_secret: bool) -> ObjectStore:
    """The speculator's objects.

    Args:
        endpoint: the URL that the user names. None: the one of the spec.
        use_secret: whether to read the keys from the Secret that the spec names.

    Raises :class:`StoreFault` when there are no credentials that may be used, and :class:`ClusterError`.
    """
    store = speculator.parsed_section("store", StoreSpec)
    if endpoint is not None and re.fullmatch(ENDPOINT_PATTERN, endpoint) is None:
        raise StoreFault("--endpoint is a URL such as http://localhost:9000, without user, password or query")
    if store.endpoint and endpoint is None and not use_secret:
        raise StoreFault(_whose_endpoint(store.endpoint))
    keys = _keys_of_secret(cluster, speculator, store) if use_secret else (None, None)
    place = root(store.prefix, store.path, speculator.namespace, speculator.name)
    config = StoreConfig(store.bucket, place, endpoint or store.endpoint, store.region, *keys)
    try:
        return ObjectStore(config, attempts=ATTEMPTS, timeout_seconds=CALL_SECONDS)
    except CredentialsMissing as error:
        raise StoreFault(_no_credentials(store)) from error
    except StoreError as error:
        raise StoreFault(str(error)) from error


def _no_credentials(store: StoreSpec) -> str:
    secret = ", or add --use-secret" if store.credentials.secret_ref is not None else ""
    return (
        "you have no credentials for the store: log in as for the AWS command line, for example with AWS_PROFILE, or"
        f" with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY{secret}"
    )


def _whose_endpoint(endpoint: str) -> str:
    return (
        f"the speculator names the store {endpoint}: add --endpoint URL to send requests with your own credentials"
        " there, or --use-secret to use the speculator's keys"
    )


def _keys_of_secret(cluster: Cluster, speculator: Speculator, store: StoreSpec) -> tuple[str, str]:
    reference = store.credentials.secret_ref
    if reference is None:
        account = store.credentials.service_account_name
        raise StoreFault(
            f"{speculator.name} names no Secret but the cloud identity of the ServiceAccount {account}:"
            " leave out --use-secret, and use your own credentials"
        )
    where = f"the Secret {reference.name} in the namespace {cluster.namespace}"
    try:
        found = cluster.secret(reference.name)
    except NotFound:
        raise StoreFault(f"{where} does not exist; create it with the store's keys") from None
    except Forbidden:
        raise Forbidden(f"you may not read {where}: use credentials of your own, without --use-secret") from None
    access, secret = (_value(found, key) for key in KEY_NAMES)
    if not access or not secret:
        raise StoreFault(f"{where} lacks {' or '.join(KEY_NAMES)}")
    return access, secret


def _value(secret: Mapping[str, str], key: str) -> str:
    """The text of a Secret's key; empty when it has none."""
    try:
        return base64.b64decode(secret.get(key) or "", validate=True).decode().strip()
    except (binascii.Error, UnicodeDecodeError):
        return ""
