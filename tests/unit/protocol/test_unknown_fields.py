"""A record with fields that this version does not know is read as if it had none of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from aurora_protocol import agent_api, pod_settings
from aurora_protocol.agent_api import AgentState, Machine, MeasurementPhase, MeasurementStatus
from aurora_protocol.draft_records import CheckpointManifest, ExpiredDraft, FileRef, TensorSpec
from aurora_protocol.errors import InvalidRecord
from aurora_protocol.record import Record, StoredRecord
from aurora_protocol.training_records import (
    ShardManifest,
    TrainerPhase,
    TrainerState,
    TrainerStatus,
)
from tests.assets.signing import ROOT_OWNER
from tests.example_count import example_count
from tests.unit.operator.worlds import (
    NOW,
    agent,
    channel,
    digest,
    evidence,
    lineage,
    registration,
    spec,
)

FILE = FileRef(name="model.safetensors", sha256=digest(3), size=5)
EVIDENCE = evidence(2)
SHARD = ShardManifest(
    lineage=1, pod="p", boot="b", seq=0, file=FILE, requests=1, tokens=2, answer_tokens=3, rounds=4, proposed=5,
    accepted=1, dropped_records=0, created=NOW,
)  # fmt: skip
STORED: tuple[StoredRecord, ...] = (
    lineage().model_copy(update={"tensors": {"fc.weight": TensorSpec(shape=(2, 3), dtype="F32")}}),
    registration(1),
    channel(1, epoch=2, previous=0, rejected=(3,)),
    ExpiredDraft(version=1, created=NOW),
    CheckpointManifest(
        lineage=1, version=1, digest=digest(1), files=(FILE,), step=9, trained_tokens=7,
        provenance={"a": "b"}, created=NOW,
    ),
    EVIDENCE,
    SHARD,
    TrainerStatus(phase=TrainerPhase.TRAINING, step=1, shards=2, trained_tokens=3, updated=NOW),
    TrainerState(epoch=1, lineage=1, step=1, trained_tokens=2, consumed=("a",), file=FILE, created=NOW),
)  # fmt: skip
SETTINGS: dict[str, Any] = {
    "namespace": "team",
    "name": "chat",
    "target": spec().target,
    "draft": spec().draft,
    "store": pod_settings.StoreSettings(owner=ROOT_OWNER.id, bucket="bucket", root="aurora/team/chat"),
}
SENT: tuple[Record, ...] = (
    agent_api.SwapRequest(version=1, digest=digest(1), epoch=4),
    agent_api.MeasurementRequest(measurement="job", epoch=4, lease_seconds=60),
    agent_api.TrialRequest(measurement="job", version=1, digest=digest(1)),
    agent_api.TraceBudget(tokens_per_minute=500),
    agent_api.Refusal(reason="epoch 4 is older", epoch=41),
    AgentState.model_validate(
        agent("p", 1).model_dump()
        | {
            "measurement": MeasurementStatus(
                measurement="job",
                phase=MeasurementPhase.MEASURING,
                machine=Machine(hardware="one GPU", device="cuda", engine="1", torch="2"),
            )
        }
    ),
    pod_settings.ServingSettings(**SETTINGS),
    pod_settings.TrainerSettings(**SETTINGS, training=spec().training),
    pod_settings.ValidationSettings(
        **SETTINGS,
        validation=spec().validation,
        candidate=2,
        active=1,
        attempt=1,
        replica=pod_settings.Replica(pod="p", ip="10.0.0.1", measurement="job", epoch=4),
    ),
    SETTINGS["store"],
    pod_settings.Replica(pod="p", ip="10.0.0.1", measurement="job", epoch=4),
)

NAMES = st.from_regex(r"newIn[A-Z][a-z]{0,5}", fullmatch=True)
VALUES = st.recursive(
    st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


def places(model: BaseModel, node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The JSON objects in ``node``, the dump of ``model``, that stand for a model and not for a map."""
    yield node
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        below: Any = node.get(field.serialization_alias or name)
        if isinstance(value, BaseModel):
            yield from places(value, below)
        elif isinstance(value, dict):
            for key, part in value.items():
                if isinstance(part, BaseModel):
                    yield from places(part, below[key])
        elif isinstance(value, list | tuple):
            for index, part in enumerate(value):
                if isinstance(part, BaseModel):
                    yield from places(part, below[index])


@st.composite
def with_unknown_fields(draw: st.DrawFn, model: BaseModel) -> dict[str, Any]:
    """The JSON of ``model`` with unknown fields at any levels, at least one."""
    node: dict[str, Any] = json.loads(model.model_dump_json(by_alias=True, exclude_none=True))
    found = list(places(model, node))
    for place in draw(st.lists(st.sampled_from(range(len(found))), min_size=1, max_size=4)):
        found[place][draw(NAMES)] = draw(VALUES)
    return node


@settings(max_examples=example_count(200), deadline=None)
@given(st.data(), st.sampled_from((*STORED, *SENT)))
def test_a_record_is_read_as_if_it_had_no_unknown_fields(data: st.DataObject, record: Record) -> None:
    newer = data.draw(with_unknown_fields(record))
    assert type(record).from_json(json.dumps(newer)) == record


def test_every_kind_of_record_is_among_the_examples() -> None:
    def kinds(parent: type[Record]) -> set[type[Record]]:
        below = {kind for child in parent.__subclasses__() for kind in kinds(child)}
        return below or {parent}

    ours = {kind for kind in kinds(Record) if kind.__module__.startswith("aurora_protocol.")}
    assert ours == {type(record) for record in (*STORED, *SENT)}


@pytest.mark.parametrize("record", STORED, ids=lambda record: type(record).__name__)
def test_a_record_with_another_schema_version_is_refused(record: StoredRecord) -> None:
    for odd in (2, "two", 0, None):
        with pytest.raises(InvalidRecord):
            type(record).from_json(json.dumps(json.loads(record.to_json()) | {"schemaVersion": odd}))
