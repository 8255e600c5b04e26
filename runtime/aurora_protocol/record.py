"""Base of every record that crosses a process boundary as JSON.

Why: the writer and the reader of a record run in different images, so the reader must check what it reads.

Invariants:

- A record that was parsed satisfies its model. An error message names wrong fields but never shows values, because a
  value may be private.
- A file name in a record is one plain name, and a record's number fits into its key. So no record leads a reader out of
  a folder.
- A new optional field keeps a record's ``schemaVersion``: older readers ignore the field. A record whose meaning an
  older reader would get wrong has a higher ``schemaVersion``, and older readers refuse it (:class:`NewerRecord`).
- An older reader takes a new value of an enumeration as the value that :func:`read_unknown_as` names, where nothing
  depends on the value. Everywhere else the reader refuses the record (:class:`NewerRecord`).
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Self

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from aurora_api.base import Model, RewrittenModel
from aurora_protocol.errors import InvalidRecord, NewerRecord

SHA256_PATTERN = r"^[0-9a-f]{64}$"


Sha256 = Annotated[str, Field(pattern=SHA256_PATTERN)]
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


def read_unknown_as(value: StrEnum) -> BeforeValidator:
    """Reads a text that is no value of this enumeration as ``value``."""
    known = frozenset(type(value))
    return BeforeValidator(lambda text: value if isinstance(text, str) and text not in known else text)


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
            if newer := _fields_with_newer_values(error):
                text = f"{cls.__name__}: {newer}: a value that a newer version wrote; upgrade the reader"
                raise NewerRecord(text) from None
            wrong = "; ".join(f"{_field(e)}: {e['msg']}" for e in error.errors(include_input=False))
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


def _fields_with_newer_values(error: ValidationError) -> str:
    """The fields, when nothing is wrong but values of enumerations. Empty: something else is wrong too."""
    wrong = error.errors()
    newer = all(_is_unknown_name(e) for e in wrong)
    return ", ".join(map(_field, wrong)) if newer else ""


def _is_unknown_name(details: ErrorDetails) -> bool:
    """Whether a name is not among those of an enumeration or a ``Literal``."""
    unknown = details["type"] in ("enum", "literal_error") and isinstance(details["input"], str)
    return unknown and details["loc"] != ("schemaVersion",)


def _field(details: ErrorDetails) -> str:
    return ".".join(map(str, details["loc"]))
