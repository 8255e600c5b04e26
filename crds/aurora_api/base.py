"""Base models and scalar types shared by the custom resource and the records.

Invariant: models are frozen, reject unknown fields and serialise with camelCase names, so that a field renamed on one
side fails at the boundary and not three steps later.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Self

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from aurora_api.errors import InvalidRecord

RATIO_PATTERN = r"^(0|[1-9][0-9]{0,3})(\.[0-9]{1,4})?$"
SHA256_PATTERN = r"^[0-9a-f]{64}$"


def _decimal(text: str) -> str:
    Decimal(text)
    return text


Ratio = Annotated[str, Field(pattern=RATIO_PATTERN), AfterValidator(_decimal)]
"""A decimal number >= 0 kept as a string: Kubernetes APIs carry no floats (API conventions, Primitive types)."""

Sha256 = Annotated[str, Field(pattern=SHA256_PATTERN)]
"""A lower-case hexadecimal SHA-256 digest."""

Timestamp = AwareDatetime
"""A point in time with its zone; written as RFC 3339."""


class Model(BaseModel):
    """A frozen value with camelCase names on the wire; unknown fields are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, validate_by_name=True, validate_by_alias=True
    )


class Record(Model):
    """A model stored as one JSON object."""

    def to_json(self) -> bytes:
        """The canonical bytes of this record."""
        return self.model_dump_json(by_alias=True, exclude_none=True, indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes | str) -> Self:
        """Parse ``data``; raise :class:`InvalidRecord` naming the fields (never the values) that are wrong."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False))
            raise InvalidRecord(f"{cls.__name__}: {wrong}") from None
