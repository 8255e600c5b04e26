"""A signature covers the whole record and its place, and what was verified is what is parsed."""

from __future__ import annotations

import json

import pytest

from aurora_protocol.draft_records import Channel
from aurora_protocol.errors import InvalidRecord, UnsignedRecord
from aurora_protocol.signatures import signed, verified
from tests.unit.operator.worlds import channel

KEY = b"k" * 32
PLACE = "aurora/team/chat-1a2b3c4d/channel/00000001.json"
RECORD = channel(0).to_json()


def check(data: bytes, place: str = PLACE, key: bytes = KEY) -> Channel:
    return Channel.from_json(verified(data, place, key))


def test_a_record_is_verified_with_the_key_that_signed_it_and_with_no_other() -> None:
    data = signed(RECORD, PLACE, KEY)
    assert check(data) == channel(0)
    assert check(signed(data, PLACE, b"another"), key=b"another") == channel(0), "it may be signed anew"
    with pytest.raises(UnsignedRecord):
        check(data, key=b"another")


@pytest.mark.parametrize(
    "place", [PLACE.replace("1.json", "2.json"), PLACE.replace("chat", "other"), PLACE.replace("channel", "evidence")]
)
def test_a_record_at_another_place_is_not_signed(place: str) -> None:
    with pytest.raises(UnsignedRecord):
        check(signed(RECORD, PLACE, KEY), place)


def test_every_field_is_covered_also_an_unknown_one() -> None:
    extended = json.dumps(json.loads(RECORD) | {"futureField": [1, {"x": None}]}).encode()
    data = signed(extended, PLACE, KEY)
    check(data)
    for field in json.loads(extended):
        changed = json.loads(data)
        changed[field] = "changed"
        with pytest.raises(UnsignedRecord):
            check(json.dumps(changed).encode())
    with pytest.raises(UnsignedRecord):
        check(json.dumps(json.loads(data) | {"added": 1}).encode())


def test_order_and_spaces_do_not_matter() -> None:
    data = json.loads(signed(RECORD, PLACE, KEY))
    turned = dict(reversed(list(data.items())))
    assert check(json.dumps(turned, separators=(",", ":")).encode()) == channel(0)


def test_a_field_that_is_there_twice_deceives_nobody() -> None:
    """Two parsers may differ about which one counts. The verified bytes hold one."""
    data = signed(RECORD, PLACE, KEY).decode()
    for twice in (data.replace("{", '{"active": 7,', 1), f'{data.rstrip()[:-1]}, "active": 7}}'):
        try:
            assert check(twice.encode()).active == 0
        except UnsignedRecord:
            continue


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"1", b"\xff", b'{"a": NaN}', b'{"a": 1e999}', b'{"a": ' + b"9" * 5000 + b"}", b"[" * 100_000],
    ids=["nothing", "list", "number", "no text", "nan", "infinity", "digits", "brackets"],
)
def test_what_is_no_json_object_is_an_invalid_record(data: bytes) -> None:
    with pytest.raises(InvalidRecord):
        check(data)


@pytest.mark.parametrize("signature", [None, [], "x", {}, 1, "\u00e9", ""])
def test_a_record_with_an_odd_signature_is_not_signed(signature: object) -> None:
    data = json.dumps(json.loads(RECORD) | {"signature": signature}).encode()
    with pytest.raises(UnsignedRecord):
        check(data)
