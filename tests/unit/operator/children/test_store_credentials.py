"""Each role's pods get the credentials of their role, and nothing of another role's."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from aurora_operator.children.inference_deployment import choice_digest
from aurora_operator.children.supporting_objects import service_accounts
from aurora_protocol.pod_settings import ACCESS_KEY, SECRET_KEY, STORE_KEYS_VARIABLE
from tests.unit.operator.children.test_children import containers, pods, variables
from tests.unit.operator.worlds import OWNER, spec

KEYS = {"secretRef": {"name": "s3"}}
PODS = {"inference": "serving", "trainer": "training", "validator": "validation"}


def store(**more: Any) -> dict[str, Any]:
    return {"store": {"bucket": "bucket", "credentials": KEYS | {"roles": more}}}


def secrets(template: dict[str, Any]) -> set[str]:
    """The Secrets with the store's keys that the containers mount where their variable says."""
    volumes = {v["name"]: v["secret"] for v in template["spec"]["volumes"] if "secret" in v}
    mounts = [
        volumes[mount["name"]]
        for container in containers(template)
        for mount in container["volumeMounts"]
        if mount["mountPath"] == variables(container).get(STORE_KEYS_VARIABLE, {}).get("value")
    ]
    assert all([item["path"] for item in one["items"]] == [ACCESS_KEY, SECRET_KEY] for one in mounts)
    assert all(one["optional"] for one in mounts), "serving does not need the store"
    return {one["secretName"] for one in mounts}


@pytest.mark.parametrize(("pod", "role"), PODS.items())
def test_a_role_with_a_secret_takes_its_keys_from_it_and_the_others_from_the_common_one(pod: str, role: str) -> None:
    made = pods(spec(**store(**{role: "own"})))
    assert {name: secrets(template) for name, template in made.items()} == {
        name: {"own"} if name == pod else {"s3"} for name in made
    }


@pytest.mark.parametrize(("pod", "role"), PODS.items())
def test_a_role_gets_its_own_service_account_where_identities_come_from_the_cloud(pod: str, role: str) -> None:
    given = spec(store={"bucket": "bucket", "credentials": {"serviceAccountName": "cloud", "roles": {role: "own"}}})
    made = pods(given)
    assert {name: template["spec"]["serviceAccountName"] for name, template in made.items()} == {
        name: "own" if name == pod else "cloud" for name in made
    }
    assert secrets(made[pod]) == set()
    assert service_accounts(OWNER, given) == []


def test_only_the_credentials_of_serving_count_as_a_change_of_the_inference_pods() -> None:
    before = choice_digest(OWNER, spec())
    for role in ("training", "validation"):
        assert choice_digest(OWNER, spec(**store(**{role: "own"}))) == before
    assert choice_digest(OWNER, spec(**store(serving="own"))) != before


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"credentials": KEYS | {"serviceAccountName": "b"}}, "exactly one of secretRef and serviceAccountName"),
        ({"credentials": KEYS | {"roles": {"operator": "own"}}}, "serving"),
    ],
)
def test_a_contradiction_is_refused_in_words(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        spec(store={"bucket": "bucket", "credentials": KEYS} | wrong)
