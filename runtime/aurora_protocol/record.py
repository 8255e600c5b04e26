"""Base of every record that crosses a process boundary as JSON.

Why: the writer and the reader of a record run in different images, so the reader must check what it reads.

Invariant: a record that was parsed satisfies its model. An error message names wrong fields but never shows values,
because a value may be private.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, ValidationError

from aurora_api.base import Model
from aurora_protocol.errors import InvalidRecord

SHA256_PATTERN = r"^[0-9a-f]{64}$"


Sha256 = Annotated[str, Field(pattern=SHA256_PATTERN)]
"""A lower-case hexadecimal SHA-256 digest."""


class Record(Model):
    """A model stored or sent as one JSON object."""

    def to_json(self) -> bytes:
        """The canonical bytes of this record."""
        return self.model_dump_json(by_alias=True, exclude_none=True, indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes | str) -> Self:
        """Parse ``data``. Raises :class:`InvalidRecord`, which names the wrong fields but not their values."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False))
            raise InvalidRecord(f"{cls.__name__}: {wrong}") from None
