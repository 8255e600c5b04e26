"""Only a version number is a request; everything else in an annotation is ignored."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aurora_api.v1alpha1.annotations import (
    ABORT_ANNOTATION,
    MEASURE_ANNOTATION,
    pair_text,
)
from aurora_operator.observe.observed import UserRequests
from aurora_operator.observe.stored_resource import user_requests


def requests_of(abort: str) -> UserRequests:
    return user_requests({"metadata": {"annotations": {ABORT_ANNOTATION: abort}}})


def test_a_version_is_a_request() -> None:
    assert requests_of("12345678") == UserRequests(abort=12345678)
    assert user_requests({"metadata": {}}) == UserRequests()


@pytest.mark.parametrize("text", ["", "v3", "-1", "3.0", " 3", "123456789", "9" * 5000, "²"])
def test_anything_else_is_ignored(text: str) -> None:
    assert requests_of(text) == UserRequests()


def measured(text: str) -> tuple[int, int] | None:
    return user_requests({"metadata": {"annotations": {MEASURE_ANNOTATION: text}}}).measure


@given(st.integers(0, 10**8 - 1), st.integers(0, 10**8 - 1))
def test_a_measurement_names_a_version_and_an_attempt(version: int, attempt: int) -> None:
    assert measured(pair_text(version, attempt)) == (version, attempt)


@pytest.mark.parametrize("text", ["", "3", "3-", "-2", "3-2-1", "3-x", "3 -2", "3-" + "9" * 5000])
def test_a_value_without_its_second_number_is_ignored(text: str) -> None:
    assert measured(text) is None


@given(st.text())
def test_no_text_raises(text: str) -> None:
    requests_of(text)
    measured(text)
