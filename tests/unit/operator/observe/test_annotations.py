"""Only a version number is a request; everything else in an annotation is ignored."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aurora_api.v1alpha1.annotations import ABORT_ANNOTATION
from aurora_operator.observe.stored_resource import aborted_version


def requests_of(abort: str) -> int | None:
    return aborted_version({"metadata": {"annotations": {ABORT_ANNOTATION: abort}}})


def test_a_version_is_a_request() -> None:
    assert requests_of("12345678") == 12345678
    assert aborted_version({"metadata": {}}) is None


@pytest.mark.parametrize("text", ["", "v3", "-1", "3.0", " 3", "123456789", "9" * 5000, "²"])
def test_anything_else_is_ignored(text: str) -> None:
    assert requests_of(text) is None


@given(st.text())
def test_no_text_raises(text: str) -> None:
    requests_of(text)
