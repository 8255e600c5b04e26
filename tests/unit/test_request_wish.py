"""What a client asks about its traces: it is understood or refused, and its tag is known by a keyed hash only."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aurora_protocol.tag_hash import NO_TAG, number_of_hash, tag_hash, tag_key, tag_number
from aurora_runtime.request_wish import DEFAULT, MAX_TAG_CHARACTERS, NO_TRACE, RequestWish, request_wish, wish_of

KEY = tag_key("secret")
SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
JSON = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=5), SCALARS, max_size=3)
TAGS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=MAX_TAG_CHARACTERS)


def request(custom_params: Any) -> Any:
    return SimpleNamespace(sampling_params=SimpleNamespace(custom_params=custom_params))


@given(st.dictionaries(st.sampled_from(["trace", "tag", "tenant", "speculate", "other"]), JSON, max_size=3) | JSON)
def test_a_wish_is_understood_or_refused_and_a_refused_one_means_no_trace(asked: Any) -> None:
    custom_params = {"aurora": asked, "thinking_budget": 3}
    try:
        wish = request_wish(custom_params)
    except ValueError:
        wish = NO_TRACE
    assert wish_of(request(custom_params)) == wish
    if asked != {}:
        assert wish != DEFAULT or set(asked) <= {"trace", "speculate"}


@pytest.mark.parametrize("custom_params", [[], "aurora", '{"aurora": {}}', {"Aurora": {"trace": False}}, {"AURORA": 1}])
def test_a_wish_in_another_form_is_refused(custom_params: Any) -> None:
    with pytest.raises(ValueError, match="custom_params"):
        request_wish(custom_params)
    assert wish_of(request(custom_params)) == NO_TRACE


@pytest.mark.parametrize("custom_params", [None, {}, {"other": {"trace": False}}])
def test_without_a_wish_a_request_is_traced_and_shared(custom_params: Any) -> None:
    assert wish_of(request(custom_params)) == DEFAULT
    assert DEFAULT.is_shared


def test_a_request_without_speculation_is_traced_and_shared() -> None:
    wish = request_wish({"aurora": {"speculate": False}})
    assert (wish.speculate, wish.trace, wish.is_shared) == (False, True, True)
    with pytest.raises(ValueError, match="speculate must be true or false"):
        request_wish({"aurora": {"speculate": 0}})


def test_the_requests_of_a_tenant_are_shared_and_traced_under_its_name_unless_they_have_a_tag() -> None:
    wish = request_wish({"aurora": {"tenant": "shop"}})
    assert (wish.tenant, wish.trace_tag, wish.is_shared) == ("shop", "shop", True)
    tagged = request_wish({"aurora": {"tenant": "shop", "tag": "order-9"}})
    assert (tagged.tenant, tagged.trace_tag, tagged.is_shared) == ("shop", "order-9", False)
    with pytest.raises(ValueError, match="tenant must be a text of 1 to 128 characters"):
        request_wish({"aurora": {"tenant": ""}})


def test_a_request_that_refuses_traces_or_has_a_tag_is_not_shared() -> None:
    assert not NO_TRACE.is_shared
    assert not RequestWish(tag="tenant-7").is_shared


@given(TAGS, TAGS)
def test_tags_have_different_numbers_that_a_shard_can_hold(one: str, other: str) -> None:
    number = tag_number(KEY, one)
    assert 0 < number < 1 << 63
    assert number_of_hash(tag_hash(number)) == number
    assert (number == tag_number(KEY, other)) == (one == other)
    assert number != tag_number(tag_key("another"), one), "without the secret nobody can try tags"


def test_no_tag_has_no_number() -> None:
    assert tag_number(KEY, "") == NO_TAG


@pytest.mark.parametrize("text", ["", "0" * 16, "f" * 16, "12", "1" * 17, "0x12345678901234", "1234567890ABCDEF"])
def test_a_text_that_is_no_hash_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="16 hexadecimal digits"):
        number_of_hash(text)
