"""An older reader and a new value of an enumeration: ignored where nothing depends on the value, else refused in words.

:data:`VALUES` is the list of all values that cross a version boundary. When a test fails because you changed one:

- A value that an older reader may ignore: make sure that its field has ``read_unknown_as``, then add the value here.
- A value that forbids or demands something of the reader: let its writer raise ``schemaVersion``, and let the model
  accept both numbers. Older readers then refuse the record in words. The agent's API has no such number: older agents
  refuse a request with a new value, so the operator must send the value only to agents that know it.
- A removed or renamed value: keep it, because stored records hold it for ever.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from enum import StrEnum
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel

from aurora_protocol import agent_api, draft_records, evidence_records, training_records
from aurora_protocol.agent_api import AgentState, MeasurementPhase, SwapPhase
from aurora_protocol.draft_records import Channel, ChannelReason
from aurora_protocol.errors import InvalidRecord, NewerRecord
from aurora_protocol.evidence_records import CachedBaseline, Evidence, MeasurementEnd
from aurora_protocol.record import Record
from aurora_protocol.training_records import TrainerPhase, TrainerStatus
from tests.unit.operator.worlds import channel, made, observed, registration, spec
from tests.unit.protocol.test_unknown_fields import SENT, STORED

MODULES = (agent_api, draft_records, evidence_records, training_records)
NEWER = "OfANewerVersion"
VALUES: dict[str, set[Any]] = {
    "Arm": {"off", "active", "candidate", "ngram"},
    "ChannelReason": {
        "Initial", "Promoted", "RolledBack", "Pinned", "Refused", "Restored", "Deleting", "Unknown",
    },
    "EngineMode": {"draft", "off", "ngram"},
    "Environment.device": {"cpu", "cuda"},
    "LookupScope": {"Off", "Request", "Speculator"},
    "Machine.device": {"cpu", "cuda"},
    "MeasurementEnd": {"Decided", "BudgetUsed", "Hopeless", "Blocked", "GaveWay", "Unknown"},
    "MeasurementPhase": {"Draining", "Measuring", "Returning", "Unknown"},
    "Shape": {"Fixed", "Adaptive"},
    "SwapPhase": {"Idle", "Staging", "Swapping", "Failed", "Unknown"},
    "TrainerPhase": {"Starting", "WaitingForTraces", "Training", "Suspended", "Unknown"},
    "VerdictKind": {"Pass", "Reject", "Inconclusive"},
}  # fmt: skip
IGNORED = [
    (Channel, ["reason"], ChannelReason.UNKNOWN),
    (Evidence, ["end"], MeasurementEnd.UNKNOWN),
    (TrainerStatus, ["phase"], TrainerPhase.UNKNOWN),
    (AgentState, ["swap", "phase"], SwapPhase.UNKNOWN),
    (AgentState, ["measurement", "phase"], MeasurementPhase.UNKNOWN),
]


def values_in(annotation: Any, place: str) -> Iterator[tuple[str, set[Any]]]:
    """The values of all enumerations and literals in ``annotation``."""
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        yield annotation.__name__, {value.value for value in annotation}
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, field in annotation.model_fields.items():
            if name != "schema_version":
                yield from values_in(field.annotation, f"{annotation.__name__}.{name}")
    elif get_origin(annotation) is Literal:
        yield place, set(get_args(annotation))
    else:
        for part in get_args(annotation):
            yield from values_in(part, place)


def test_the_values_that_versions_exchange_are_those_of_the_list() -> None:
    records = [
        kind
        for module in MODULES
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, Record) and kind.__module__ == module.__name__
    ]
    assert len(records) > 10
    assert dict(values for record in records for values in values_in(record, "")) == VALUES, "read the rules above"


def example(kind: type[Record]) -> dict[str, Any]:
    (record,) = (one for one in (*STORED, *SENT) if type(one) is kind)
    dumped: dict[str, Any] = json.loads(record.to_json())
    return dumped


def put(node: Any, path: list[Any], value: object) -> None:
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = value


@pytest.mark.parametrize(("kind", "path", "read"), IGNORED, ids=lambda part: str(getattr(part, "__name__", part)))
def test_a_new_value_on_which_nothing_depends_is_read_as_unknown(
    kind: type[Record], path: list[str], read: StrEnum
) -> None:
    newer = example(kind)
    put(newer, path, NEWER)
    record: Any = kind.from_json(json.dumps(newer))
    for part in path:
        record = getattr(record, part)
    assert record is read


def test_an_operator_goes_on_after_a_channel_record_with_a_new_reason() -> None:
    newer = json.loads(channel(1, epoch=2, previous=0).to_json()) | {"reason": NEWER}
    store = replace(
        observed().store,
        channel=Channel.from_json(json.dumps(newer)),
        registrations={version: registration(version) for version in (0, 1)},
    )
    advance = made(observed(store=store, spec=spec(rollout={"pin": 0}))).advance
    assert advance is not None
    assert (advance.active, advance.epoch, advance.reason) == (0, 3, ChannelReason.PINNED)


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        (Evidence, ["verdict", "kind"]),
        (Evidence, ["samples", 0, "arm"]),
        (Evidence, ["environment", "draftShape"]),
        (CachedBaseline, ["environment", "lookup"]),
    ],
)
def test_a_new_value_on_which_a_decision_depends_is_refused_in_words(kind: type[Record], path: list[Any]) -> None:
    newer = example(kind)
    put(newer, path, NEWER)
    with pytest.raises(NewerRecord, match=rf"{'.'.join(map(str, path))}: .* upgrade the reader") as raised:
        kind.from_json(json.dumps(newer))
    assert NEWER not in str(raised.value)


def test_a_record_with_another_fault_too_is_not_called_newer() -> None:
    for path, value in ((["verdict", "kind"], 5), (["samples", 0, "seconds"], -1)):
        wrong = example(Evidence)
        put(wrong, ["samples", 0, "arm"], NEWER)
        put(wrong, path, value)
        with pytest.raises(InvalidRecord) as raised:
            Evidence.from_json(json.dumps(wrong))
        assert not isinstance(raised.value, NewerRecord)


@pytest.mark.parametrize(("kind", "path", "read"), IGNORED, ids=lambda part: str(getattr(part, "__name__", part)))
@pytest.mark.parametrize("odd", [5, None, ["a"], {"a": 1}, True])
def test_a_value_that_is_no_text_is_refused(kind: type[Record], path: list[str], read: StrEnum, odd: Any) -> None:
    if odd is None and read is MeasurementEnd.UNKNOWN:
        return
    wrong = example(kind)
    put(wrong, path, odd)
    with pytest.raises(InvalidRecord):
        kind.from_json(json.dumps(wrong))
