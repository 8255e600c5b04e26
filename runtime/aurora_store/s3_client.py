"""boto3's clients of this process, and its errors in words.

Why clients are shared: a boto3 session takes 13 MB and 0.1 s, and a client 0.4 MB. All speculators of one store need
one client.

Invariants: users with equal settings share one client, and users with different settings never do. A redirect from an
endpoint that a user named is an error, because boto3 would ask the same endpoint for the bucket's region for ever.
A message contains nothing that the store sent, except a short code. An object counts as missing only when S3 says so:
nothing reads it again, and callers reject or delete what it belongs to.
"""

from __future__ import annotations

import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

import boto3
import botocore.session
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    NoCredentialsError,
)
from botocore.httpsession import URLLib3Session
from botocore.parsers import ResponseParserError
from botocore.utils import get_environ_proxies
from urllib3.exceptions import HTTPError

from aurora_store.deadline import raise_if_over
from aurora_store.errors import (
    AddressRefused,
    CallUnavailable,
    CredentialsMissing,
    ObjectArchived,
    ObjectExists,
    ObjectMissing,
    ObjectRefused,
    StoreError,
    bounded_text,
)
from aurora_store.mounted_keys import MountedKeysProvider

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CONNECT_TIMEOUT_SECONDS: Final = 5
MAX_KEPT_CONNECTIONS: Final = 64
"""Connections that a client keeps for the next requests: one for each thread of the operator."""
DEFAULT_REGION: Final = "us-east-1"
MAX_ANSWER_BYTES: Final = 4 << 20
"""Largest answer that holds no object. A page of a listing has at most 1000 keys of at most 1024 bytes."""
_METADATA_SERVICE: Final = IPv6Address("fd00:ec2::254")
"""The metadata service of AWS in IPv6, whose address is not link-local."""


class RedirectRefused(Exception):
    """The store answered with a redirect."""


FAILURES: Final = (
    BotoCoreError,
    ClientError,
    boto3.exceptions.Boto3Error,
    ResponseParserError,
    RedirectRefused,
    HTTPError,
    KeyError,
    ValueError,
)
"""Everything that boto3 raises. It raises HTTPError while it reads the text of an error, and ValueError when a number
or a date in the answer's headers does not parse. A KeyError is a field that the answer lacks."""


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
    timeout_seconds: float
    """Longest wait for the next bytes of an answer, or until the store takes the next bytes of a request."""


class S3Clients:
    """Creates clients and shares them. A client is freed with its last user."""

    def __init__(self) -> None:
        self._clients: WeakValueDictionary[ClientSettings, S3Client] = WeakValueDictionary()
        self._lock = threading.Lock()  # only one thread at a time may use a session to create a client
        self._core = botocore.session.get_session()
        self._core.get_component("credential_provider").insert_before("env", MountedKeysProvider())
        self._session: boto3.session.Session | None = None

    def client(self, settings: ClientSettings) -> S3Client:
        """The client for ``settings``. Raises :class:`StoreError` when boto3 refuses the settings."""
        with self._lock:
            client = self._clients.get(settings)
            if client is None:
                client = self._clients[settings] = self._create(settings)
        return client

    def _create(self, settings: ClientSettings) -> S3Client:
        if self._session is None:
            self._session = boto3.session.Session(botocore_session=self._core)
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
                    read_timeout=settings.timeout_seconds,
                    retries={"mode": "standard", "total_max_attempts": settings.attempts},
                    signature_version="s3v4",
                    s3={"addressing_style": "path" if settings.endpoint else "auto"},
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                ),
            )
        except (BotoCoreError, ValueError) as error:
            raise store_error(error, "open the store", settings.endpoint or "S3") from error
        events: Any = client.meta.events
        ca_bundle = self._core.get_config_variable("ca_bundle")
        events.register_first("before-send.s3", _Sender(client.meta.endpoint_url, ca_bundle, settings.timeout_seconds))
        if settings.endpoint:
            events.register_first("needs-retry.s3", _refuse_redirect)
        return client


class _Sender:
    """Sends a client's requests, and reads a bounded answer. Handler of boto3's event ``before-send``.

    Why: boto3 reads listings and errors whole, and a store that never stops sending would fill the memory.
    """

    def __init__(self, endpoint: str, ca_bundle: str | None, timeout_seconds: float) -> None:
        """``endpoint``: where the client sends its requests, also on AWS. It decides about a proxy, as in boto3."""
        options: dict[str, Any] = {
            "verify": ca_bundle or os.environ.get("REQUESTS_CA_BUNDLE") or True,
            "proxies": get_environ_proxies(endpoint),
            "timeout": (CONNECT_TIMEOUT_SECONDS, timeout_seconds),
            "max_pool_connections": MAX_KEPT_CONNECTIONS,
        }
        self._session = URLLib3Session(**options)

    def __call__(self, request: Any, **_: Any) -> AWSResponse:
        """The answer. Its body is read already, unless it is an object. Raises :class:`StoreError`."""
        raise_if_over()
        is_object, request.stream_output = request.stream_output, True
        answer: Any = self._session.send(request)
        body = _ObjectBody(answer.raw) if is_object and answer.status_code < 300 else _Body(answer.raw)
        return AWSResponse(answer.url, answer.status_code, answer.headers, body)


class _ObjectBody:
    """The body of an object, as boto3 reads it.

    A read returns what has come and waits for no more, so its reader looks at the deadline often.
    """

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self.close = raw.close

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes, none at the end."""
        return cast(bytes, self._raw.read1(size))


class _Body:
    """The body of an answer that is no object. Raises :class:`StoreError` when it is too long."""

    def __init__(self, raw: Any) -> None:
        data = bytearray()
        try:
            while chunk := raw.read1(MAX_ANSWER_BYTES // 16):  # what has come, so that the deadline is looked at
                raise_if_over()
                data += chunk
                if len(data) > MAX_ANSWER_BYTES:
                    break
        except HTTPError as error:
            raise HTTPClientError(error=error) from error  # boto3 tries such a request again
        if len(data) > MAX_ANSWER_BYTES:
            raw.close()  # the rest would be read before the next request
            raise StoreError(f"an answer has more than {MAX_ANSWER_BYTES} bytes; check that it is an S3 store")
        self._data = bytes(data)

    def stream(self) -> Iterator[bytes]:
        """As boto3 reads it."""
        yield self._data


SHARED_CLIENTS: Final = S3Clients()
"""The clients of this process."""


def _refuse_redirect(response: tuple[Any, Any] | None = None, **_: Any) -> None:
    """Handler of boto3's event ``needs-retry``."""
    if response is not None and response[0] is not None and 300 <= response[0].status_code < 400:
        raise RedirectRefused(f"HTTP {response[0].status_code}")


def refuse_link_local(endpoint: str) -> None:
    """Raise :class:`AddressRefused` when the host of ``endpoint`` has a link-local address. Blocks."""
    host = urlsplit(endpoint).hostname or ""
    with suppress(OSError, ValueError):  # a name that does not resolve is reported by the first call
        for answer in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM):
            address = ip_address(str(answer[4][0]).partition("%")[0])
            embedded = address.ipv4_mapped if isinstance(address, IPv6Address) else None
            if (embedded or address).is_link_local or address == _METADATA_SERVICE:
                raise AddressRefused("the endpoint leads to a link-local address; name the store's own address")


# errors ---------------------------------------------------------------------------------------------------------------

_ACCESS_CODES: Final = ("AccessDenied", "403")
"""Codes of a refused right. The answer to a HEAD request has no body, so its code is the status."""
_MISSING_CODES: Final = ("NoSuchKey", "NoSuchUpload", "NoSuchVersion")
"""S3's codes of what does not exist. A gateway before the store answers 404 too while it has no route, without them."""
_CALLS_WITHOUT_BODY: Final = ("HeadBucket", "HeadObject")
"""Of their answers, the status is all that tells."""
_UNKNOWN_CALL_CODES: Final = ("InvalidArgument", "InvalidRequest", "MethodNotAllowed", "NotImplemented")
"""Codes with which stores answer a call that they do not know."""
_CODE: Final = re.compile(r"[A-Z][A-Za-z]{2,40}")
_HINTS: Final = {
    "AuthorizationHeaderMalformed": "set store.region to the bucket's region",
    "PermanentRedirect": "set store.region to the bucket's region",
    "ExpiredToken": "keys in a Secret must be long-lived ones",
    "InvalidToken": "keys in a Secret must be long-lived ones",
    "RequestTimeTooSkewed": "set the clock of the pod's node, which differs from the store's",
    "NoSuchBucket": "create the bucket",
    "InvalidAccessKeyId": "check the access key",
    "SignatureDoesNotMatch": "check the secret key",
}
_RIGHTS: Final = {
    "ListObjectsV2": "s3:ListBucket",
    "DeleteObjects": "s3:DeleteObject",
    "CreateMultipartUpload": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
    "ListObjectVersions": "s3:ListBucketVersions",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
}
"""The right that an operation of the S3 API needs, where it is not named like the operation."""
_KMS_RIGHTS: Final = {"s3:PutObject": "kms:GenerateDataKey and kms:Decrypt", "s3:GetObject": "kms:Decrypt"}
"""What else a right needs where a KMS key encrypts the bucket. The error does not say which right is missing."""
_ASSUME_ROLE: Final = "AssumeRole"
"""How the names of the operations of AWS STS begin that fetch a workload identity."""


def store_error(error: Exception, call: str, store: str) -> StoreError:
    """The typed error for ``error``.

    Args:
        call: the operation and the key.
        store: the endpoint, for messages.
    """
    kind, text = _described(error, store)
    return kind(bounded_text(f"{call}: {text}"))


def _described(error: Exception, store: str) -> tuple[type[StoreError], str]:
    if isinstance(error, RedirectRefused):
        return StoreError, f"{store} answered with a redirect ({error}); name the final URL"
    if isinstance(error, boto3.exceptions.Boto3Error) and isinstance(error.__context__, ClientError):
        error = error.__context__  # an upload, which boto3 wraps
    if isinstance(error, ClientError):
        return _sent(error)
    if isinstance(error, (CredentialRetrievalError, NoCredentialsError)):
        return (
            CredentialsMissing,
            "the workload identity gave no credentials; check the role of the pod's ServiceAccount",
        )
    if isinstance(error, (ResponseParserError, KeyError, ValueError)) and not isinstance(error, BotoCoreError):
        return StoreError, f"the answer is not one of S3; check that {store} is an S3 store"
    return StoreError, f"{type(error).__name__}; check that {store} answers"


def _sent(error: ClientError) -> tuple[type[StoreError], str]:
    """The kind and the text for an error that the store, or AWS STS, sent."""
    code, status, operation = error_code(error), _status(error), error.operation_name
    shown = code if _CODE.fullmatch(code) else f"HTTP {status}"
    if operation.startswith(_ASSUME_ROLE):
        return StoreError, f"{operation}: {shown}; check the role, its trust policy, and that AWS STS answers"
    if code in _MISSING_CODES or (code == "404" and operation in _CALLS_WITHOUT_BODY):
        return ObjectMissing, "no such object"
    if is_write_conflict(error):
        return StoreError, "another write of the object was under way; try again"
    if status == 412 or code == "PreconditionFailed":
        return ObjectExists, "another writer created the object first"
    if is_access_refused(error):
        return ObjectRefused, f"{code}; {access_hint(operation)}"
    if code == "InvalidObjectState":
        return ObjectArchived, f"{code}; restore the object, and exempt the root from rules that archive objects"
    if status in (405, 501) or code in _UNKNOWN_CALL_CODES:
        return CallUnavailable, f"{shown}; the store does not know this call, or not this way to make it"
    if code.startswith("KMS."):
        return ObjectRefused, f"{code[:40]}; check the bucket's KMS key"
    if status == 404 and code not in _HINTS:
        return StoreError, "HTTP 404, but no code of S3; check store.endpoint, and the gateway before the store"
    return StoreError, "; ".join((shown, _HINTS.get(code, "see the store's log")))


def error_code(error: ClientError) -> str:
    """The code of an error that the store sent. Untrusted text."""
    return str(error.response.get("Error", {}).get("Code", ""))


def _status(error: ClientError) -> int | None:
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")


def is_access_refused(error: ClientError) -> bool:
    """Whether the store refused a right."""
    return error_code(error) in _ACCESS_CODES


def is_beyond_end(error: ClientError) -> bool:
    """Whether the store refused a range because the object ends before the range begins."""
    return _status(error) == 416


def is_write_conflict(error: ClientError) -> bool:
    """Whether the store refused a conditional write because another write of the same object is under way."""
    return error_code(error) == "ConditionalRequestConflict"


def access_hint(operation: str) -> str:
    """What to do when the store refuses an operation of the S3 API."""
    if operation in _CALLS_WITHOUT_BODY:
        return "check the credentials and their rights on the bucket"
    right = _RIGHTS.get(operation, f"s3:{operation}")
    kms = _KMS_RIGHTS.get(right)
    key = f", and {kms} on the bucket's KMS key if it has one" if kms else ""
    return f"allow {right} for these credentials{key}"
