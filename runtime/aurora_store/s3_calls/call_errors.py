"""Turns the exceptions of a call into :class:`~aurora_store.errors.StoreError`, with what to do.

Invariants: a message contains nothing that the store sent, except a code that S3 or AWS STS defines. A refused right is
named by its S3 action, so that an administrator can add the action to the policy of the credentials. An object counts
as missing only when S3 says so: nothing reads it again, and callers reject or delete what it belongs to. A failure of a
workload identity, which boto3 fetches within a call of the store, is not reported as a failure of the store.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

import boto3
from botocore.exceptions import BotoCoreError, ClientError, CredentialRetrievalError
from botocore.parsers import ResponseParserError

from aurora_store.errors import (
    DEFAULT_HINT,
    ERROR_HINTS,
    KMS_CODES,
    AccessRefused,
    AddressRefused,
    KeyUnusable,
    ObjectArchived,
    ObjectExists,
    ObjectMissing,
    ObjectTooLarge,
    StoreError,
    StoreInterrupted,
    StoreOverdue,
    bounded_text,
)
from aurora_store.s3_calls.call_limits import INTERRUPTED, CallLimits
from aurora_store.s3_calls.s3_clients import RedirectRefused

_ACCESS_CODES: Final = ("AccessDenied", "403")
"""Codes of a refused right. The answer to a HEAD request has no body, so its code is the status."""
_MISSING_CODES: Final = ("NoSuchKey", "NoSuchUpload", "NoSuchVersion")
"""S3's codes of what does not exist. A gateway before the store answers 404 too while it has no route, without them."""
_CALLS_WITHOUT_BODY: Final = ("HeadBucket", "HeadObject")
"""The answers to these calls have no body, so that the status 404 is all that they say."""
_GATEWAY_HINT: Final = "but no code of S3; check store.endpoint, and the gateway or ingress before the store"
_UNKNOWN_CALL_CODES: Final = ("InvalidArgument", "InvalidRequest", "MethodNotAllowed", "NotImplemented")
"""Codes with which stores answer a call that they do not know."""
DELETE_VERSIONS: Final = "DeleteObjects by VersionId"
"""DeleteObjects with the ids of versions. It needs another right than without them."""
_ACTIONS: Final = {
    "CreateBucket": "s3:CreateBucket",
    "CreateMultipartUpload": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
    "PutObject": "s3:PutObject",
    "GetObject": "s3:GetObject",
    "ListObjectsV2": "s3:ListBucket",
    "DeleteObject": "s3:DeleteObject",
    "DeleteObjects": "s3:DeleteObject",
    DELETE_VERSIONS: "s3:DeleteObjectVersion",
    "ListObjectVersions": "s3:ListBucketVersions",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
}
"""The right that each operation of the S3 API needs."""
_KMS_ACTIONS: Final = {
    "s3:PutObject": "kms:GenerateDataKey and kms:Decrypt",
    "s3:GetObject": "kms:Decrypt",
}
"""What else an action needs where a KMS key encrypts the bucket. The error does not say which right is missing."""
_ASSUME_ROLE: Final = "AssumeRole"
"""How the names of the operations of AWS STS begin that fetch a workload identity."""
_IDENTITY_CODES: Final = (
    *("AccessDenied", "ExpiredTokenException", "IDPCommunicationError", "IDPRejectedClaim", "InvalidIdentityToken"),
    *("MalformedPolicyDocument", "RegionDisabledException", "ValidationError"),
)
"""The error codes that AWS STS defines for these operations."""
_IDENTITY_HINT: Final = (
    "check that the role exists, and that its trust policy names this cluster, and the namespace and ServiceAccount of"
    " the pod"
)


def store_error(error: Exception, call: str, limits: CallLimits, store: str) -> StoreError:
    """The typed error for ``error``.

    Args:
        call: the operation and the key.
        store: the endpoint, for messages.
    """
    if limits.too_large and limits.reading_object:
        return ObjectTooLarge(bounded_text(f"{call}: {limits.too_large}; find out who else writes below the root"))
    if limits.too_large:
        return StoreError(bounded_text(f"{call}: {limits.too_large}; check that {store} is an S3 store"))
    if limits.address_refused:
        text = f"{call}: {limits.address_refused}, to which the operator may not connect; ask the operator's"
        return AddressRefused(f"{text} administrator to add the host to stores.internalHosts of the chart")
    silent = _identity_service(error) or store
    if limits.overdue:
        return StoreOverdue(bounded_text(f"{call}: {limits.overdue}; check that {silent} answers"))
    if limits.interrupted():
        return StoreInterrupted(bounded_text(f"{call}: {INTERRUPTED}"))
    if isinstance(error, RedirectRefused):
        return StoreError(bounded_text(f"{call}: {store} answered with a redirect ({error}); name the final URL"))
    if isinstance(error, ClientError):
        return _error_sent(error, call)
    if isinstance(error, (ResponseParserError, ValueError)) and not isinstance(error, BotoCoreError):
        return StoreError(bounded_text(f"{call}: the answer is not one of S3; check that {store} is an S3 store"))
    if isinstance(error, boto3.exceptions.Boto3Error):
        if isinstance(error.__context__, ClientError):  # an upload, which boto3 wraps
            return _error_sent(error.__context__, call)
        return StoreError(bounded_text(f"{call}: {type(error).__name__}; see the store's log"))
    if isinstance(error, CredentialRetrievalError):
        hint = "check the role that the cloud gives to the pod's ServiceAccount"
        return StoreError(bounded_text(f"{call}: the workload identity gave no credentials; {hint}"))
    return StoreError(bounded_text(f"{call}: {type(error).__name__}; check that {silent} can be reached"))


def _identity_service(error: Exception) -> str:
    """The service that fetches a workload identity, if the connection to it failed; otherwise an empty text."""
    endpoint = error.kwargs.get("endpoint_url") if isinstance(error, BotoCoreError) else None
    host = (urlsplit(endpoint).hostname or "") if isinstance(endpoint, str) else ""
    return f"AWS STS ({host}), which fetches the workload identity," if host.startswith(("sts.", "sts-fips.")) else ""


def _error_sent(error: ClientError, call: str) -> StoreError:
    """The typed error for an error that the store, or AWS STS, sent."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if error.operation_name.startswith(_ASSUME_ROLE):
        shown = code if code in _IDENTITY_CODES else f"HTTP {status}"
        if code == "IDPCommunicationError" or "Throttl" in code or (status or 0) >= 500:
            text = f"{error.operation_name}: {shown}; AWS STS does not answer at the moment"
            return StoreError(bounded_text(f"{call}: {text}"))
        if code == "ExpiredTokenException":
            hint = "the pod's token has expired: check the node's clock"
            return AccessRefused(bounded_text(f"{call}: {error.operation_name}: {shown}; {hint}"))
        return AccessRefused(bounded_text(f"{call}: {error.operation_name}: {shown}; {_IDENTITY_HINT}"))
    if code in _MISSING_CODES or (code == "404" and error.operation_name in _CALLS_WITHOUT_BODY):
        return ObjectMissing(bounded_text(f"{call}: no such object"))
    if is_write_conflict(error):
        return StoreError(bounded_text(f"{call}: another write of the object was under way; try again"))
    if status == 412 or code == "PreconditionFailed":
        return ObjectExists(bounded_text(f"{call}: another writer created the object first"))
    if is_access_refused(error):
        return AccessRefused(bounded_text(f"{call}: {code}; {access_hint(error.operation_name)}"))
    if code == "InvalidObjectState":
        return ObjectArchived(bounded_text(f"{call}: {code}; {ERROR_HINTS[code]}"))
    if code in KMS_CODES:
        return KeyUnusable(bounded_text(f"{call}: {code}; {ERROR_HINTS[code]}"))
    if status == 404 and code not in ERROR_HINTS:
        return StoreError(bounded_text(f"{call}: HTTP 404, {_GATEWAY_HINT}"))
    shown = code if code in ERROR_HINTS else f"HTTP {status}"
    return StoreError(bounded_text(f"{call}: {shown}; {ERROR_HINTS.get(code, DEFAULT_HINT)}"))


def is_access_refused(error: ClientError) -> bool:
    """Whether the store refused a right."""
    return is_access_code(error.response.get("Error", {}).get("Code", ""))


def is_access_code(code: str) -> bool:
    """Whether a code of the store says that a right is missing."""
    return code in _ACCESS_CODES


def is_unknown_call(error: ClientError) -> bool:
    """Whether the store does not know the call, as many S3-compatible stores do not know some."""
    if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") in (405, 501):
        return True
    return is_unknown_call_code(error.response.get("Error", {}).get("Code", ""))


def is_unknown_call_code(code: str) -> bool:
    """Whether a store answers with this code to a call that it does not know."""
    return code in _UNKNOWN_CALL_CODES


def is_beyond_end(error: ClientError) -> bool:
    """Whether the store refused a range because the object ends before the range begins."""
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 416


def is_write_conflict(error: ClientError) -> bool:
    """Whether the store refused a conditional write because another write of the same object is under way."""
    return error.response.get("Error", {}).get("Code", "") == "ConditionalRequestConflict"


def access_hint(operation: str) -> str:
    """What to do when the store refuses an operation of the S3 API."""
    action = _ACTIONS.get(operation)
    if action is None:
        return ERROR_HINTS["403"]
    kms = _KMS_ACTIONS.get(action)
    key = f", and {kms} on the bucket's KMS key if it has one" if kms else ""
    return f"allow {action} there for these credentials{key}"
