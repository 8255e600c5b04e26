"""Server-side encryption as arguments of a write: of ``PutObject``, and of an upload in parts.

A read needs no argument: the store decrypts for everybody with the rights to read the object and to use its key.
"""

from __future__ import annotations

from typing import Any, Final

from aurora_api.v1alpha1.store import Encryption, EncryptionType

_ALGORITHMS: Final = {EncryptionType.SSE_S3: "AES256", EncryptionType.SSE_KMS: "aws:kms"}


def encryption_arguments(encryption: Encryption | None) -> dict[str, Any]:
    """The arguments of boto3 that make the store encrypt an object. None: the bucket's default applies."""
    if encryption is None:
        return {}
    key = {"SSEKMSKeyId": encryption.kms_key_id} if encryption.kms_key_id else {}
    return {"ServerSideEncryption": _ALGORITHMS[encryption.type], **key}
