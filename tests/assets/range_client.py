"""Answers requests for ranges as S3 does, for stores in memory and in a folder."""

from __future__ import annotations

import io
from typing import Any, Final

from botocore.exceptions import ClientError
from botocore.response import StreamingBody

from aurora_store import ObjectStore

MAX_BYTES: Final = 1 << 40


class RangeClient:
    """Stands for boto3's client of a fake store, whose own ``get`` gives the objects."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects

    def get_object(self, *, Bucket: str, Key: str, Range: str) -> dict[str, Any]:
        """A part of an object. Raises boto3's error when the object ends before the range begins."""
        key = Key.removeprefix(f"{self._objects.config.root}/")
        data = self._objects.get(key, max_bytes=MAX_BYTES)
        first, last = (int(number) for number in Range.removeprefix("bytes=").split("-"))
        if first >= len(data):
            answer: Any = {"Error": {"Code": "InvalidRange"}, "ResponseMetadata": {"HTTPStatusCode": 416}}
            raise ClientError(answer, "GetObject")
        part = data[first : last + 1]
        return {"Body": StreamingBody(io.BytesIO(part), len(part)), "ContentLength": len(part)}


def answer_ranges(objects: Any) -> None:
    """Let a fake store read ranges with the code of the real one."""
    objects._on_request = lambda operation: None
    objects._s3 = RangeClient(objects)
