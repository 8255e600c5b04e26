"""``spec.store``: the S3 bucket that holds traces, checkpoints and records."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final, Self

from pydantic import Field, model_validator

from aurora_api.base import Model
from aurora_api.v1alpha1.cel import matches, rules

_HOST: Final = r"([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])"
_PORT: Final = "([0-9]{1,4}|[0-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
ENDPOINT_PATTERN: Final = rf"^https?://{_HOST}(:{_PORT})?(/[A-Za-z0-9._~/-]*)?$"
"""No user information, no query, no underscore in the host: botocore refuses such a host only at the first call."""
_SEGMENT: Final = "[A-Za-z0-9_-][A-Za-z0-9._-]*"
ROOT_PATTERN: Final = rf"^({_SEGMENT}/)*[a-z0-9-]+/[a-z0-9-]+-[0-9a-f]{{8}}$"
"""``<prefix>/<namespace>/<name>-<uid8>``, as ``status.storeRoot`` shows it."""
_KMS_KEY_PATTERN: Final = r"^[A-Za-z0-9:/_-]+$"
_OBJECT_NAME = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]


class DeletionPolicy(StrEnum):
    """Whether the speculator's objects in the bucket outlive the speculator."""

    RETAIN = "Retain"
    DELETE = "Delete"


class StoreRole(StrEnum):
    """The parts of a speculator whose pods may have credentials of their own."""

    SERVING = "serving"
    TRAINING = "training"
    VALIDATION = "validation"


class SecretRef(Model):
    """A Secret in the speculator's namespace."""

    name: _OBJECT_NAME = Field(description="Secret with keys AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.")


class RoleCredentials(Model):
    """How the pods of one role authenticate to the store. Set exactly one of the fields."""

    model_config = Model.model_config | {
        "json_schema_extra": rules(
            (
                "has(self.secretRef) != has(self.serviceAccountName)",
                "set exactly one of secretRef and serviceAccountName",
            ),
        )
    }

    secret_ref: SecretRef | None = Field(
        default=None,
        description="Long-lived access keys from a Secret, in its items AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. A"
        " session token is not read.",
    )
    service_account_name: _OBJECT_NAME | None = Field(
        default=None,
        description="Existing ServiceAccount whose pods obtain credentials from the cloud (workload identity)."
        " Kubernetes gives the identity to every container of the pods.",
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.secret_ref is None) == (self.service_account_name is None):
            raise ValueError("set exactly one of secretRef and serviceAccountName")
        return self


class CredentialsByRole(Model):
    """Credentials of single roles, each with the rights that the role needs and no others."""

    serving: RoleCredentials | None = Field(
        default=None,
        description="For inference pods, which read drafts and write traces. Unset: those of `credentials`.",
    )
    training: RoleCredentials | None = Field(
        default=None,
        description="For the trainer, which reads and deletes traces, and writes drafts and its own state. Unset: those"
        " of `credentials`.",
    )
    validation: RoleCredentials | None = Field(
        default=None,
        description="For validation Jobs, which read drafts and traces, and write evidence. Unset: those of"
        " `credentials`.",
    )


class Credentials(RoleCredentials):
    """How the operator and the pods authenticate to the store. Set exactly one of secretRef and serviceAccountName."""

    roles: CredentialsByRole | None = Field(
        default=None,
        description="Credentials of the pods by role, so that a compromised pod can do only what its role does. See"
        " docs/how-to/credentials-per-role.md for a policy for each role. Unset: all pods use the same credentials as"
        " the operator.",
    )

    def of(self, role: StoreRole) -> RoleCredentials:
        """The credentials of the pods of ``role``."""
        own: RoleCredentials | None = getattr(self.roles, role.value, None)
        return own or RoleCredentials(secret_ref=self.secret_ref, service_account_name=self.service_account_name)


class EncryptionType(StrEnum):
    """Whose keys encrypt the stored objects: those of the store, or of a key management service."""

    SSE_S3 = "SSE-S3"
    SSE_KMS = "SSE-KMS"


class Encryption(Model):
    """Server-side encryption that every write asks for."""

    model_config = Model.model_config | {
        "json_schema_extra": rules(
            ("!has(self.kmsKeyId) || self.type == 'SSE-KMS'", "encryption.kmsKeyId needs type SSE-KMS"),
        )
    }

    type: EncryptionType = Field(
        description="SSE-S3: with keys of the store. SSE-KMS: with a key of the cloud's key management service, which"
        " the credentials must then be allowed to use.",
    )
    kms_key_id: str | None = Field(
        default=None,
        min_length=1,
        max_length=512,
        pattern=_KMS_KEY_PATTERN,
        json_schema_extra=matches(_KMS_KEY_PATTERN, "a KMS key is an id, an alias such as alias/aurora, or an ARN"),
        description="Key for SSE-KMS: id, alias or ARN. Unset: the default key of the account.",
    )

    @model_validator(mode="after")
    def _key_of_kms(self) -> Self:
        if self.kms_key_id is not None and self.type is not EncryptionType.SSE_KMS:
            raise ValueError("encryption.kmsKeyId needs type SSE-KMS")
        return self


_NO_IDENTITY_FOR_AN_ENDPOINT: Final = "!has(self.endpoint) || !has(self.credentials.roles) || " + " && ".join(
    f"(!has(self.credentials.roles.{role}) || has(self.credentials.roles.{role}.secretRef))" for role in StoreRole
)


class StoreSpec(Model):
    """The S3 bucket for traces, checkpoints and records. The fields that say where the history lies are immutable."""

    model_config = Model.model_config | {
        "json_schema_extra": rules(
            ("!self.bucket.matches('^[0-9]+([.][0-9]+){3}$')", "bucket: S3 allows no IP address as a name"),
            (
                "!has(self.endpoint) || !self.endpoint.matches('^https?://(169[.]254[.]|[[][fF][eE][89abAB])')",
                "endpoint: link-local addresses are refused, because they reach a node's metadata service",
            ),
            (
                "!has(self.endpoint) || has(self.credentials.secretRef)",
                "with endpoint set credentials.secretRef: the operator signs with its own identity for AWS S3 only",
            ),
            (
                _NO_IDENTITY_FOR_AN_ENDPOINT,
                "with endpoint set secretRef for each of credentials.roles: a cloud identity is for AWS S3 only",
            ),
        )
    }

    bucket: str = Field(
        min_length=3,
        max_length=63,
        pattern=r"^[a-z0-9]([a-z0-9-]|[.][a-z0-9])*[a-z0-9]$|^[a-z0-9]+$",
        json_schema_extra=matches(
            r"^[a-z0-9]([a-z0-9-]|[.][a-z0-9])*[a-z0-9]$|^[a-z0-9]+$",
            "a bucket's name has 3 to 63 lower-case letters, digits, '-' and single dots",
        ),
        description="Name of the bucket. Immutable. It must honour `PutObject If-None-Match: *`, which the operator"
        " checks.",
    )
    prefix: str = Field(
        default="aurora",
        max_length=256,
        pattern=rf"^({_SEGMENT}(/{_SEGMENT})*/?)?$",
        json_schema_extra=matches(
            rf"^({_SEGMENT}(/{_SEGMENT})*/?)?$",
            "a prefix is a relative path such as team/aurora: no leading '/', and no segment begins with '.'",
        ),
        description="Folder in the bucket, without a leading slash. Immutable. Each speculator has a folder of its own"
        " below it.",
    )
    endpoint: str | None = Field(
        default=None,
        max_length=512,
        pattern=ENDPOINT_PATTERN,
        json_schema_extra=matches(
            ENDPOINT_PATTERN,
            "an endpoint is a URL such as http://minio.storage:9000: a host name or address, perhaps a port up to"
            " 65535 and a path, and no user, password or query",
        ),
        description="URL of an S3-compatible store, such as `http://minio.storage:9000`. Unset: AWS S3."
        " Needs `credentials.secretRef`.",
    )
    region: str | None = Field(
        default=None,
        max_length=64,
        pattern=r"^[a-z0-9-]+$",
        json_schema_extra=matches(
            r"^[a-z0-9-]+$",
            "a region has lower-case letters, digits and '-', such as eu-central-1",
        ),
        description="Region of the bucket. Unset: the environment's AWS_REGION, else us-east-1.",
    )
    restore_from: str | None = Field(
        default=None,
        min_length=10,
        max_length=512,
        pattern=ROOT_PATTERN,
        json_schema_extra=matches(
            ROOT_PATTERN,
            "restoreFrom is the root of a former speculator in the same bucket, such as aurora/default/chat-1a2b3c4d:"
            " a relative path without '.' segments, copied from status.storeRoot",
        ),
        description="Root of a former speculator in this bucket, to go on from: its `status.storeRoot`. Immutable. This"
        " speculator takes the root over in place, with versions, evidence, traces and trainer state, and `prefix` has"
        " no effect. The former speculator can then change nothing there. Target,"
        " `draft.vocabSize` and `draft.initial` must be the same. Unset: begin at version 0 in a root of its own.",
    )
    deletion_policy: DeletionPolicy = Field(
        default=DeletionPolicy.RETAIN,
        description="What happens to the objects in the bucket when the speculator is deleted. Retain: nothing, and"
        " another speculator can restore them. Delete: the operator stops the pods, deletes every object of this"
        " speculator, with older versions and unfinished uploads where the credentials may, and only then lets the"
        " resource go. Set Retain to end a deletion that cannot reach the store.",
    )
    encryption: Encryption | None = Field(
        default=None,
        description="Server-side encryption of every object that the speculator writes. Unset: as the bucket's default"
        " says. Objects that are stored already stay as they are.",
    )
    credentials: Credentials
