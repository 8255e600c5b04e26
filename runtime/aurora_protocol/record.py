"""Base of every record that crosses a process boundary as JSON.

Why: the writer and the reader of a record run in different images, so the reader must check what it reads.

Invariants:

- A record that was parsed satisfies its model. An error message names wrong fields but never shows values, because a
  value may be private.
- A new optional field keeps a record's ``schemaVersion``: older readers ignore the field. A record whose meaning an
  older reader would get wrong has a higher ``schemaVersion``, and older readers refuse it (:class:`NewerRecord`).
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import ConfigDict, Field, ValidationError

from aurora_api.base import Model, RewrittenModel
from aurora_protocol.errors import InvalidRecord, NewerRecord

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
        """Parse ``data``. Raises :class:`InvalidRecord`, which names the wrong fields but not their values.

        Raises :class:`NewerRecord` when only a newer version can read the record.
        """
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            if _is_newer(error):
                text = f"{cls.__name__}: its schemaVersion is newer than this version reads; upgrade the reader"
                raise NewerRecord(text) from None
            wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False))
            raise InvalidRecord(f"{cls.__name__}: {wrong}") from None


class StoredRecord(RewrittenModel, Record):
    """A record in the store. Unknown fields are kept, so a record that carries an older one forward loses none."""

    model_config = ConfigDict(extra="allow")


def _is_newer(error: ValidationError) -> bool:
    """Whether ``schemaVersion`` is a higher number than the model's. A missing or odd value is not newer."""
    return any(
        details["loc"] == ("schemaVersion",) and isinstance(details["input"], int) and details["input"] > 1
        for details in error.errors()
    )
