"""Keys in the store: the number of a record is read back from its key, and keys sort by number."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aurora_protocol.errors import InvalidRecord
from aurora_store.keys import Keys, number_of, root

numbers = st.integers(0, 10**8 - 1)


@given(numbers)
def test_the_number_of_a_record_is_read_back_from_its_key(number: int) -> None:
    for key in (Keys.registration(number), Keys.lineage(number), Keys.channel(number), Keys.trainer_state(number)):
        assert number_of(key) == number


@given(st.lists(numbers, min_size=2, unique=True))
def test_keys_sort_by_number(values: list[int]) -> None:
    assert [number_of(key) for key in sorted(map(Keys.channel, values))] == sorted(values)


@given(numbers, numbers)
def test_evidence_lies_below_its_version(version: int, attempt: int) -> None:
    key = Keys.evidence(version, attempt)
    assert key.startswith(Keys.evidence_of(version))
    assert number_of(key) == attempt


def test_a_shard_is_found_by_lineage_and_ordered_by_time() -> None:
    early = Keys.shard(1, "pod-0", "ab", 9, datetime(2026, 1, 2, 3, tzinfo=UTC))
    late = Keys.shard(1, "pod-0", "ab", 10, datetime(2026, 1, 2, 4, tzinfo=UTC))
    assert early == "traces/00000001/2026-01-02/03/pod-0-ab-00000009"
    assert early.startswith(Keys.traces(1))
    assert early < late
    assert not early.startswith(Keys.traces(10))


def test_a_root_holds_no_uid_so_that_a_speculator_created_again_finds_it() -> None:
    assert root("/aurora/", None, "ns", "chat") == "aurora/ns/chat"
    assert root("aurora", "other/old", "ns", "chat") == "aurora/other/old"
    assert root("", None, "ns", "chat") == "ns/chat"


@pytest.mark.parametrize(
    "key",
    [
        "registry/zzz.json",
        f"registry/{'9' * 5000}.json",
        "registry/1.json",
        "registry/00000001",
        f"registry/{chr(0x661) * 8}.json",
        "registry/-0000001.json",
        "registry/00000001.json\n",
    ],
)
def test_a_key_without_a_records_number_is_an_invalid_record(key: str) -> None:
    with pytest.raises(InvalidRecord, match="has no record's name"):
        number_of(key)
