"""Store records about the erasure of one tag: the step under way, and the report that proves it.

Invariants: a record names a tag by its hash only. The step is written before the shard that it names is touched, so a
trainer that resumes knows what the shard becomes.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from aurora_api.base import Timestamp
from aurora_api.v1alpha1.training import TAG_HASH_PATTERN
from aurora_protocol.record import Count, RecordNumber, StoredRecord

TagHash = Annotated[str, Field(pattern=TAG_HASH_PATTERN)]
"""The hash of a tag: 16 hexadecimal digits."""


class ErasureCounts(StoredRecord):
    """What an erasure did so far."""

    tag: TagHash = Field(description="Hash of the tag.")
    started: Timestamp = Field(description="When the erasure began.")
    shards_rewritten: Count = Field(default=0, description="Shards that were written again without the tag's traces.")
    shards_unreadable: Count = Field(
        default=0,
        description="Shards whose data nobody can read. They were emptied, as they may hold the tag's traces.",
    )
    traces_removed: Count = Field(default=0, description="Traces with the tag that were removed.")


class ErasureReport(ErasureCounts):
    """The proof of an erasure."""

    schema_version: Literal[1] = 1
    number: RecordNumber = Field(ge=1, description="Number of the report about this tag, from 1.")
    shards_scanned: Count = Field(description="Shards that the last scan read, after all others were rewritten.")
    remaining_traces: Count = Field(
        description="Traces with the tag that the last scan found: those of clients who went on sending the tag."
    )
    versions: tuple[RecordNumber, ...] = Field(
        description="Versions that were registered after the first of the removed traces that may be trained on. Each"
        " may have learned from it, and so may every later version of its lineage."
    )
    completed: Timestamp = Field(description="When the last scan ended.")
