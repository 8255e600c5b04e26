"""``spec.store``: the S3 bucket."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from aurora_api.base import Model
from aurora_api.v1alpha1.template import rules

_NAME = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]


class SecretRef(Model):
    name: _NAME = Field(description="Secret with keys AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.")


class Credentials(Model):
    """Exactly one kind."""

    model_config = Model.model_config | {
        "json_schema_extra": rules(
            (
                "has(self.secretRef) != has(self.serviceAccountName)",
                "set exactly one of secretRef and serviceAccountName",
            ),
        )
    }

    secret_ref: SecretRef | None = None
    service_account_name: _NAME | None = Field(
        default=None, description="Existing ServiceAccount whose pods obtain credentials (workload identity)."
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Credentials:
        if (self.secret_ref is None) == (self.service_account_name is None):
            raise ValueError("set exactly one of secretRef and serviceAccountName")
        return self


class StoreSpec(Model):
    """The S3 bucket for traces and checkpoints. Moving it is a new speculator: state lives there."""

    bucket: str = Field(min_length=3, max_length=63, pattern=r"^[a-z0-9][a-z0-9.-]*[a-z0-9]$")
    prefix: str = Field(default="aurora", max_length=256, pattern=r"^[A-Za-z0-9._/-]*$")
    endpoint: str | None = Field(
        default=None, max_length=512, pattern=r"^https?://[^\s]+$", description="Unset: AWS S3."
    )
    region: str | None = Field(default=None, max_length=64)
    credentials: Credentials
