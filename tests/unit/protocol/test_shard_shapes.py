"""A shard's counts by shape and source are bounded, and readers of other versions bear them or their absence."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aurora_protocol.record import StoredRecord
from aurora_protocol.training_records import MAX_SHAPES, MAX_STEPS, ShapeCounts, ShardManifest
from aurora_store.objects import MAX_RECORD_BYTES
from tests.unit.protocol.test_unknown_fields import SHARD

MOST = (1 << 63) - 1


class OlderManifest(StoredRecord):
    """A manifest of a version that knows the rounds and not their shapes."""

    rounds: int


def with_shapes(*shapes: dict[str, Any]) -> bytes:
    """The manifest as a writer would store it, whatever the shapes are."""
    return json.dumps(json.loads(SHARD.to_json()) | {"shapes": shapes}).encode()


def counts(**changes: object) -> dict[str, Any]:
    return {"source": "draft", "steps": 3, "rounds": 4, "accepted": 1} | changes


def test_a_manifest_of_an_older_version_says_nothing_about_shapes() -> None:
    older = json.loads(SHARD.to_json())
    older.pop("shapes", None)
    assert ShardManifest.from_json(json.dumps(older)).shapes is None


def test_an_older_reader_keeps_the_counts_that_it_does_not_know() -> None:
    written = OlderManifest.from_json(with_shapes(counts())).to_json()
    assert ShardManifest.from_json(written).shapes == (ShapeCounts(source="draft", steps=3, rounds=4, accepted=1),)


def test_a_source_of_a_newer_version_does_not_make_the_manifest_unreadable() -> None:
    assert ShardManifest.from_json(with_shapes(counts(source="oracle", depth=2))).rounds == SHARD.rounds


def test_the_largest_counts_fit_into_a_record() -> None:
    largest = [counts(source="z" * 16, steps=MAX_STEPS, rounds=MOST, accepted=MOST)] * MAX_SHAPES
    written = ShardManifest.from_json(with_shapes(*largest)).to_json()
    assert len(written) < MAX_RECORD_BYTES / 100


@pytest.mark.parametrize(
    "shapes",
    [
        [counts()] * (MAX_SHAPES + 1),
        [counts(source="Draft")],
        [counts(source="")],
        [counts(source="a" * 17)],
        [counts(source="draft\n")],
        [counts(steps=-1)],
        [counts(steps=MAX_STEPS + 1)],
        [counts(rounds=-1)],
        [counts(rounds=MOST + 1)],
        [counts(accepted=-1)],
        [counts(accepted=MOST + 1)],
        [{"source": "draft"}],
    ],
)
def test_counts_beyond_their_bounds_are_ignored_and_the_shard_can_be_read(shapes: list[dict[str, Any]]) -> None:
    assert ShardManifest.from_json(with_shapes(*shapes)) == SHARD.model_copy(update={"shapes": None})
