"""A child that needs no write after a restart, and every reason why a child needs one."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from aurora_operator.act.unchanged_child import DIGEST_ANNOTATION, is_unchanged, with_digest

CHILD: dict[str, Any] = {
    "kind": "Deployment",
    "metadata": {"name": "chat", "labels": {"app": "aurora"}},
    "spec": {"replicas": 2, "template": {"containers": [{"name": "sglang", "args": ["--a", "1"]}, {"name": "agent"}]}},
}


def live(child: dict[str, Any]) -> dict[str, Any]:
    """``child`` as the API server shows it, with defaults and a status."""
    shown = copy.deepcopy(child)
    shown["metadata"] |= {"uid": "1", "generation": 3}
    shown["spec"]["template"]["containers"][0]["terminationMessagePath"] = "/dev/termination-log"
    return shown | {"status": {"replicas": 2}}


def test_defaults_and_a_status_are_no_change() -> None:
    child = with_digest(CHILD)
    assert is_unchanged(child, live(child))


def test_the_digest_follows_the_content_and_keeps_other_annotations() -> None:
    annotated = copy.deepcopy(CHILD)
    annotated["metadata"]["annotations"] = {"team": "a"}
    assert with_digest(annotated)["metadata"]["annotations"]["team"] == "a"
    digests = {with_digest(each)["metadata"]["annotations"][DIGEST_ANNOTATION] for each in (CHILD, annotated)}
    assert len(digests) == 2
    assert "annotations" not in CHILD["metadata"], "the argument is not changed"


@pytest.mark.parametrize("change", ["value", "missing field", "extra container", "order", "digest", "no annotations"])
def test_a_change_is_seen(change: str) -> None:
    child = with_digest(CHILD)
    shown = live(child)
    containers = shown["spec"]["template"]["containers"]
    if change == "value":
        shown["spec"]["replicas"] = 5
    elif change == "missing field":
        del containers[0]["args"]
    elif change == "extra container":
        containers.append({"name": "sidecar"})
    elif change == "order":
        containers.reverse()
    elif change == "digest":
        shown["metadata"]["annotations"][DIGEST_ANNOTATION] = "0" * 16
    else:
        del shown["metadata"]["annotations"]
    assert not is_unchanged(child, shown)


def test_a_field_that_we_no_longer_want_is_a_change() -> None:
    """Only the digest shows this change: the live object still has every field of the new child."""
    smaller = copy.deepcopy(CHILD)
    del smaller["spec"]["template"]["containers"][0]["args"]
    assert not is_unchanged(with_digest(smaller), live(with_digest(CHILD)))
