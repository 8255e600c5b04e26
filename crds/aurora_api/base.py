"""Base model and scalar types of the custom resource.

Invariants: models are frozen and use camelCase names in YAML and JSON. A field that this version does not know never
makes a value unreadable, because another part of a running system may be newer. The API server refuses misspelt fields
of a spec before they are stored (strict field validation).
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any, Final

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel

RATIO_PATTERN: Final = r"^(0|[1-9][0-9]{0,3})(\.[0-9]{1,4})?$"
QUANTITY_PATTERN: Final = r"^[1-9][0-9]{0,17}(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P)?$"
AMOUNT_PATTERN: Final = r"^[0-9]{1,18}(\.[0-9]{1,9})?(m|Ki|Mi|Gi|Ti|Pi|k|M|G|T|P)?$"
MEMORY_SIZE_PATTERN: Final = r"^[1-9][0-9]{0,6}(Mi|Gi|M|G)$"
COUNT_OR_PERCENT_PATTERN: Final = r"^(0|[1-9][0-9]{0,2})%?$"
MAX_COUNT: Final = 999
"""Highest number that :data:`COUNT_OR_PERCENT_PATTERN` allows. A rule of each model says so to the API server."""
MAX_QUANTITY: Final = 10**18 - 1
"""The same for :data:`QUANTITY_PATTERN`, without a unit."""
_UNIT_BYTES: Final = {
    "": 1,
    "Ki": 1 << 10,
    "Mi": 1 << 20,
    "Gi": 1 << 30,
    "Ti": 1 << 40,
    "Pi": 1 << 50,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "P": 10**15,
}


def _decimal(text: str) -> str:
    Decimal(text)
    return text


def _integer_as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _count_or_percent(value: Any) -> Any:
    text = _integer_as_text(value)
    if not isinstance(text, str) or re.fullmatch(COUNT_OR_PERCENT_PATTERN, text) is None:
        raise ValueError("a number of pods, such as 1, or a percentage, such as 25%")
    return text if text.endswith("%") else int(text)


Ratio = Annotated[str, Field(pattern=RATIO_PATTERN), AfterValidator(_decimal)]
"""A decimal number >= 0, kept as a string: Kubernetes APIs carry no floats (API conventions, "Primitive types")."""

ObjectName = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
"""Name of a Kubernetes object."""

Quantity = Annotated[
    str,
    BeforeValidator(_integer_as_text),
    Field(pattern=QUANTITY_PATTERN),
    WithJsonSchema({"x-kubernetes-int-or-string": True, "pattern": QUANTITY_PATTERN}),
]
"""A number of bytes as Kubernetes writes it: ``64Gi``, ``500M``, ``1073741824``."""

Amount = Annotated[
    str,
    BeforeValidator(_integer_as_text),
    Field(pattern=AMOUNT_PATTERN),
    WithJsonSchema({"x-kubernetes-int-or-string": True, "pattern": AMOUNT_PATTERN}),
]
"""An amount of a resource as Kubernetes writes it: ``1``, ``500m``, ``48Gi``."""

MemorySize = Annotated[str, Field(pattern=MEMORY_SIZE_PATTERN)]
"""A number of bytes from a million upwards, always with its unit: ``512Mi``, ``2Gi``."""

CountOrPercent = Annotated[
    int | str,
    BeforeValidator(_count_or_percent),
    WithJsonSchema({"x-kubernetes-int-or-string": True, "pattern": COUNT_OR_PERCENT_PATTERN}),
]
"""A number of pods (``1``) or a share of them (``25%``), as in a Deployment's ``rollingUpdate``."""

Timestamp = AwareDatetime
"""A point in time with its zone; written as RFC 3339."""


def quantity_bytes(quantity: str) -> int:
    """The number of bytes that a :data:`Quantity` stands for."""
    digits = quantity.rstrip("KMGTPik")
    return int(digits) * _UNIT_BYTES[quantity[len(digits) :]]


_GIVEN_FIELDS: Final[set[str]] = set()
"""Takes the place of the set of given fields in each model. Such a set takes 216 to 2,264 bytes. Never changed, because
models are frozen and a copy gets a set of its own."""


class Model(BaseModel):
    """A frozen value with camelCase names on the wire. Unknown fields are ignored."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", alias_generator=to_camel, validate_by_name=True, validate_by_alias=True
    )

    def model_post_init(self, _context: Any) -> None:
        """Forget which fields were given. Nobody asks, and an operator keeps dozens of models for each speculator."""
        object.__setattr__(self, "__pydantic_fields_set__", _GIVEN_FIELDS)
