"""Errors of the store package.

StoreError              the object store refused a call, or cannot be reached
├── ObjectMissing       there is no object at the key
├── ObjectArchived      the object lies in a storage class from which it cannot be read
├── KeyUnusable         the KMS key of the object cannot be used
├── ObjectExists        another writer created the object first
├── DigestMismatch      the bytes differ from the digest in the record that names them
│   └── ObjectTooLarge  the object is larger than that record says, or than any record may be
├── StoreOverdue        the answer was not complete at the deadline
├── AddressRefused      the endpoint leads to an address to which no connection is allowed
├── CredentialsMissing  this process has no credentials for the store
├── AccessRefused       the credentials lack a right, which the message names
├── CallUnavailable     the store does not know a call, or the credentials may not make it
├── StoreInterrupted    nobody waits for the answer any more
├── NotRootOwner        the root belongs to another speculator, or is being deleted
└── StoreUnsupported    the store lacks conditional writes
"""

from __future__ import annotations

MAX_ERROR_CHARACTERS = 300
"""Longest text of an error. A text may quote what others chose, such as a key, and the operator copies it into the
status."""

DEFAULT_HINT = "see the store's log"
_CODES_WITHOUT_HINT = (
    *("AccountProblem", "AllAccessDisabled", "BadDigest", "BucketAlreadyExists", "BucketAlreadyOwnedByYou"),
    *("EntityTooLarge", "InternalError", "InvalidArgument", "InvalidBucketName", "InvalidBucketState"),
    *("InvalidRange", "InvalidRequest", "InvalidSecurity", "KeyTooLongError", "MalformedXML"),
    *("MethodNotAllowed", "MissingContentLength", "NotImplemented", "NotSignedUp", "OperationAborted"),
    *("QuotaExceeded", "RequestTimeout", "ServiceUnavailable", "SlowDown", "TooManyBuckets", "XMinioStorageFull"),
)
KMS_CODES = (
    *("KMS.DisabledException", "KMS.InvalidKeyUsageException"),
    *("KMS.KMSInvalidStateException", "KMS.NotFoundException"),
)
"""Codes of a KMS key that cannot be used."""
_KMS_HINT = "check the key in store.encryption.kmsKeyId"
_REGION_HINT = "set store.region to the bucket's region"
_REGION_CODES = (
    *("AuthorizationHeaderMalformed", "IllegalLocationConstraintException"),
    *("PermanentRedirect", "TemporaryRedirect"),
)
_EXPIRED_HINT = "the credentials have expired; keys in a Secret must be long-lived ones"
_EXPIRED_CODES = ("ExpiredToken", "TokenRefreshRequired")
ERROR_HINTS = dict.fromkeys(_CODES_WITHOUT_HINT, DEFAULT_HINT) | {
    **dict.fromkeys(_REGION_CODES, _REGION_HINT),
    **dict.fromkeys(_EXPIRED_CODES, _EXPIRED_HINT),
    "InvalidToken": "check the credentials; keys in a Secret must be long-lived ones, because no session token is read",
    "RequestTimeTooSkewed": "set the clock of the pod's node, which differs from the store's",
    "NoSuchBucket": "create the bucket",
    "InvalidObjectState": "restore the object, and exempt the root from lifecycle rules that archive objects",
    "AccessDenied": "check the credentials' rights on the bucket",
    **dict.fromkeys(KMS_CODES, _KMS_HINT),
    "403": "check the credentials and their rights on the bucket",
    "InvalidAccessKeyId": "check the access key, which must be a long-lived one",
    "SignatureDoesNotMatch": "check the secret key",
}
"""The error codes that S3 and compatible stores define, each with what to do. Any other code is untrusted text."""


def bounded_text(text: str, limit: int = MAX_ERROR_CHARACTERS) -> str:
    """``text`` on one line, without control characters and at most ``limit`` characters long."""
    shown = "".join(character if character.isprintable() else " " for character in text[: limit + 1])
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"


class StoreError(Exception):
    """The object store refused a call or could not be reached. The message names the call and says what to check."""


class ObjectMissing(StoreError):
    """There is no object at this key. The store itself said so, with a code of S3."""


class ObjectArchived(StoreError):
    """The object lies in an archive class, from which nothing can be read before somebody restores it."""


class KeyUnusable(StoreError):
    """The KMS key with which the object is encrypted is disabled, deleted or of another kind."""


class ObjectExists(StoreError):
    """A create-once object exists already: another writer was first."""


class DigestMismatch(StoreError):
    """The bytes at a key differ from the digest in the record that names them."""


class NotRootOwner(StoreError):
    """The root belongs to another speculator, or its owner deletes it. The message names the owner."""


class ObjectTooLarge(DigestMismatch):
    """The object is larger than the record that names it says, or than any record may be. Reading it was stopped."""


class StoreOverdue(StoreError):
    """The answer was not complete at the deadline."""


class AddressRefused(StoreError):
    """The endpoint leads to an address of the node or of the cluster. No connection to it was opened."""


class StoreUnsupported(StoreError):
    """The store ignores ``If-None-Match: *``, so two writers could overwrite each other."""


class CredentialsMissing(StoreError):
    """Neither the settings nor the environment hold credentials."""


class AccessRefused(StoreError):
    """The credentials lack a right. The message names the right."""


class CallUnavailable(StoreError):
    """The store does not know a call that Aurora can do without, or the credentials may not make it."""


class StoreInterrupted(StoreError):
    """The call was given up, because nobody waits for its answer any more."""


OBJECT_REFUSALS = (ObjectArchived, KeyUnusable, AccessRefused)
"""Errors that may be about one object alone, while the store gives others."""
