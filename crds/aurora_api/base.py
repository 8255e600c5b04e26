"""Base model and scalar types of the custom resource."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

RATIO_PATTERN = r"^(0|[1-9][0-9]{0,3})(\.[0-9]{1,4})?$"


def _decimal(text: str) -> str:
    Decimal(text)
    return text


Ratio = Annotated[str, Field(pattern=RATIO_PATTERN), AfterValidator(_decimal)]
"""A decimal number >= 0 kept as a string: Kubernetes APIs carry no floats (API conventions, Primitive types)."""


Timestamp = AwareDatetime
"""A point in time with its zone; written as RFC 3339."""


class Model(BaseModel):
    """A frozen value with camelCase names on the wire; unknown fields are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, validate_by_name=True, validate_by_alias=True
    )
