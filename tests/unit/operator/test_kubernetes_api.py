"""Texts of the API server are bounded before anybody logs or stores them."""

from __future__ import annotations

import json

import pytest

from aurora_operator.errors import Conflict, Expired, KubernetesError, NotFound
from aurora_operator.kubernetes_api import refusal


@pytest.mark.parametrize(("status", "kind"), [(403, KubernetesError), (404, NotFound), (409, Conflict), (410, Expired)])
def test_the_text_of_a_refusal_is_bounded_and_on_one_line(status: int, kind: type[KubernetesError]) -> None:
    """A webhook may answer with any text, and each retry logs it."""
    error = refusal("POST jobs", status, json.dumps({"message": "denied\n" + "no! " * 20_000}).encode())
    assert type(error) is kind
    assert error.status == status
    assert str(error).startswith("denied no! no!")
    assert len(str(error)) == 300


def test_a_refusal_without_a_text_names_the_call() -> None:
    assert str(refusal("POST jobs", 500, b"<html>")) == "POST jobs: HTTP 500"
