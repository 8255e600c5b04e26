"""Base of every record that crosses a process boundary as JSON.

Why: the writer and the reader of a record run in different images, so the reader must check what it reads.

Invariants:

- A record that was parsed satisfies its model. An error message names wrong fields but never shows values, because a
  value may be private.
- A file name in a record is one plain name, and a record's number fits into its key. So no record leads a reader out of
  a folder.
- A reader ignores fields that it does not know, and refuses any other value and any other ``schemaVersion``.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, ValidationError
from pydantic_core import ErrorDetails

from aurora_api.base import Model
from aurora_protocol.errors import InvalidRecord

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""A lower-case hexadecimal SHA-256 digest."""

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}", re.ASCII)


def _plain_name(name: str) -> str:
    if _FILE_NAME.fullmatch(name) is None:
        raise ValueError("not a plain name, so it may lead outside its folder")
    return name


FileName = Annotated[str, AfterValidator(_plain_name)]
"""The name of a file in the folder of the record that names it. Neither a path nor a hidden file."""

MAX_NUMBER = 10**8 - 1
"""Highest number of a lineage, a version or an epoch. The keys of records have eight digits."""

RecordNumber = Annotated[int, Field(ge=0, le=MAX_NUMBER)]
"""The number of a lineage, a version, an epoch, an attempt or a shard."""

Count = Annotated[int, Field(ge=0, lt=1 << 63)]
"""A count, for example of tokens or bytes."""


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
            wrong = "; ".join(f"{_field(e)}: {e['msg']}" for e in error.errors(include_input=False))
            raise InvalidRecord(f"{cls.__name__}: {wrong}") from None


class StoredRecord(Record):
    """A record in the store."""

    schema_version: Literal[1] = 1


def _field(details: ErrorDetails) -> str:
    return ".".join(map(str, details["loc"]))
