"""``spec.store``: the S3 bucket that holds traces, checkpoints and records."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, Self

from pydantic import Field, model_validator

from aurora_api.base import Model, ObjectName
from aurora_api.v1alpha1.cel import matches, rules

_HOST: Final = r"([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])"
_PORT: Final = "([0-9]{1,4}|[0-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
ENDPOINT_PATTERN: Final = rf"^https?://{_HOST}(:{_PORT})?(/[A-Za-z0-9._~/-]*)?$"
"""No user information, no query, no underscore in the host: botocore refuses such a host only at the first call."""
_SEGMENT: Final = "[A-Za-z0-9_-][A-Za-z0-9._-]*"
PATH_PATTERN: Final = rf"^{_SEGMENT}/{_SEGMENT}$"
"""Two segments, as ``<namespace>/<name>`` has, so that no path below a prefix lies inside another one."""


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

    name: ObjectName = Field(description="Secret with keys AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.")


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
    service_account_name: ObjectName | None = Field(
        default=None,
        description="Existing ServiceAccount whose pods obtain credentials from the cloud (workload identity)."
        " Kubernetes gives the identity to every container of the pods.",
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.secret_ref is None) == (self.service_account_name is None):
            raise ValueError("set exactly one of secretRef and serviceAccountName")
        return self


class Credentials(RoleCredentials):
    """How the operator and the pods authenticate to the store. Set exactly one of secretRef and serviceAccountName."""

    roles: dict[StoreRole, ObjectName] = Field(
        default_factory=dict,
        description="Secrets, or with `serviceAccountName` ServiceAccounts, of the pods by role: `serving`, `training`,"
        " `validation`. A compromised pod can then do only what its role does. See docs/how-to/credentials-per-role.md."
        " Unset: all pods use the same as the operator.",
        json_schema_extra={"maxProperties": len(StoreRole)}
        | rules(
            (
                f"self.all(r, r in {[role.value for role in StoreRole]})",
                f"roles are {', '.join(StoreRole)}",
            )
        ),
    )

    def of(self, role: StoreRole) -> RoleCredentials:
        """The credentials of the pods of ``role``."""
        name = self.roles.get(role)
        if self.secret_ref is not None:
            return RoleCredentials(secret_ref=SecretRef(name=name) if name else self.secret_ref)
        return RoleCredentials(service_account_name=name or self.service_account_name)


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
        description="Folder in the bucket, without a leading slash. Immutable. Every speculator has its `path` there.",
    )
    path: str | None = Field(
        default=None,
        max_length=256,
        pattern=PATH_PATTERN,
        json_schema_extra=matches(
            PATH_PATTERN,
            "a path has two segments, such as team/chat: letters, digits, '-', '_' and '.', and none begins with '.'",
        ),
        description="Folder of this speculator below `prefix`, in two segments. Immutable. Unset: `<namespace>/<name>`."
        " A speculator that finds the folder of a former one with its own namespace and name goes on with the former"
        " draft, as in a cluster that is built anew. Set another path to begin at version 0, or to keep two clusters"
        " apart that share a bucket. To take over the folder of a speculator with another name, set the annotation"
        ' `aurora.dev/adopt: "true"`. With `credentials.serviceAccountName` the path begins with the namespace.',
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
        description="Region of the bucket. Unset: the environment's AWS_REGION, else us-east-1.",
    )
    deletion_policy: DeletionPolicy = Field(
        default=DeletionPolicy.RETAIN,
        description="Retain: the objects in the bucket outlive the speculator, and the next one with its path goes on"
        " from them."
        " Delete: the operator stops the pods, deletes the objects, and only then lets the resource go. Set Retain to"
        " end a deletion that cannot reach the store.",
    )
    credentials: Credentials
