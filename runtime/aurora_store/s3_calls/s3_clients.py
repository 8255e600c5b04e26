"""The boto3 clients of this process, shared by everybody with the same settings.

Why: a boto3 session takes 13 MB and 0.1 s, and a client 0.4 MB. An operator of a thousand speculators that share one
store needs one client.

Invariants: users with equal settings share one client, and users with different settings never do. A client is freed
with its last user. A redirect from an endpoint that a user named is an error, because following it would send signed
requests to a host that nobody named.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, CredentialRetrievalError

from aurora_store.errors import CredentialsMissing, StoreError, bounded_text
from aurora_store.policy.address_policy import AddressPolicy
from aurora_store.s3_calls import call_limits

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CONNECT_TIMEOUT_SECONDS = 5
DEFAULT_REGION = "us-east-1"


class RedirectRefused(Exception):
    """The store answered with a redirect."""


@dataclass(frozen=True)
class ClientSettings:
    """Everything that two users of one client must have in common.

    Without ``access_key`` and ``secret_key``, boto3 looks for credentials itself. ``repr`` never shows them.
    """

    endpoint: str | None
    region: str | None
    access_key: str | None = field(repr=False)
    secret_key: str | None = field(repr=False)
    attempts: int
    """How often boto3 tries a request that failed in transit."""
    addresses: AddressPolicy | None = None
    """Addresses that ``endpoint`` may lead to. None: any."""


class S3Clients:
    """Creates clients and shares them."""

    def __init__(self) -> None:
        self._clients: WeakValueDictionary[ClientSettings, S3Client] = WeakValueDictionary()
        # The search for ambient credentials may take seconds. It has its own session and lock, so that clients with
        # keys of their own never wait for it.
        self._with_keys, self._ambient = _Session(), _Session()

    def client(self, settings: ClientSettings) -> S3Client:
        """The client for ``settings``. Raises :class:`StoreError` when boto3 refuses the settings."""
        client = self._clients.get(settings)
        if client is not None:
            return client
        session = self._ambient if settings.access_key is None else self._with_keys
        with session.lock:
            client = self._clients.get(settings)
            if client is None:
                client = self._clients[settings] = session.create(settings)
        return client

    def __len__(self) -> int:
        return len(self._clients)


class _Session:
    """A boto3 session, which only one thread at a time may use to create a client."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._session: boto3.session.Session | None = None

    def create(self, settings: ClientSettings) -> S3Client:
        if self._session is None:
            self._session = boto3.session.Session()
        try:
            # A client keeps the credentials that it starts with, even none. So do not keep a client without any.
            if settings.access_key is None and self._session.get_credentials() is None:
                raise CredentialsMissing("no credentials were found; name a Secret, or give the pod a cloud identity")
            client: S3Client = self._session.client(
                "s3",
                endpoint_url=settings.endpoint,
                region_name=settings.region or os.environ.get("AWS_REGION") or DEFAULT_REGION,
                aws_access_key_id=settings.access_key,
                aws_secret_access_key=settings.secret_key,
                config=Config(
                    connect_timeout=CONNECT_TIMEOUT_SECONDS,
                    read_timeout=call_limits.IO_TIMEOUT_SECONDS,
                    retries={"mode": "standard", "max_attempts": settings.attempts},
                    signature_version="s3v4",
                    s3={"addressing_style": "path" if settings.endpoint else "auto"},
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                ),
            )
        except CredentialRetrievalError as error:
            hint = "check the role that the cloud gives to the pod's ServiceAccount"
            raise CredentialsMissing(bounded_text(f"the workload identity gave no credentials; {hint}")) from error
        except (BotoCoreError, ValueError) as error:
            raise StoreError(bounded_text(f"the store's settings cannot be used: {error}")) from error
        call_limits.limit_connections(client, settings.addresses)
        events: Any = client.meta.events
        events.register_first("before-send.s3", call_limits.begin_request)
        events.register_first("needs-retry.s3", call_limits.stop_retries)
        if settings.endpoint:
            events.register_first("needs-retry.s3", _refuse_redirect)
        return client


def _refuse_redirect(response: tuple[Any, Any] | None = None, **_: Any) -> None:
    """Handler of botocore's event ``needs-retry``.

    Without it, botocore would ask the same endpoint for the bucket's region again and again, as long as the endpoint
    answers with redirects.
    """
    if response is not None and response[0] is not None and 300 <= response[0].status_code < 400:
        raise RedirectRefused(f"HTTP {response[0].status_code}")


SHARED_CLIENTS = S3Clients()
"""The clients of this process."""
