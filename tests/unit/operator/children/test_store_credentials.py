"""Each role's pods get the credentials of their role, and nothing of another role's."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from aurora_operator.children.inference_deployment import choice_digest
from aurora_operator.children.supporting_objects import service_accounts
from aurora_protocol.pod_settings import ServingSettings, TrainerSettings, ValidationSettings
from tests.unit.operator.children.test_children import containers, pods, variables
from tests.unit.operator.worlds import OWNER, spec

KEYS = {"secretRef": {"name": "s3"}}
PODS = {"inference": "serving", "trainer": "training", "validator": "validation"}


def store(**more: Any) -> dict[str, Any]:
    return {"store": {"bucket": "bucket", "credentials": KEYS | {"roles": more}}}


def secrets(template: dict[str, Any]) -> set[str]:
    """The Secrets that the containers take the store's keys from."""
    entries = (entry for container in containers(template) for entry in variables(container).values())
    return {e["valueFrom"]["secretKeyRef"]["name"] for e in entries if "secretKeyRef" in e.get("valueFrom", {})}


@pytest.mark.parametrize(("pod", "role"), PODS.items())
def test_a_role_with_a_secret_takes_its_keys_from_it_and_the_others_from_the_common_one(pod: str, role: str) -> None:
    made = pods(spec(**store(**{role: {"secretRef": {"name": "own"}}})))
    assert {name: secrets(template) for name, template in made.items()} == {
        name: {"own"} if name == pod else {"s3"} for name in made
    }


@pytest.mark.parametrize(("pod", "role"), PODS.items())
def test_a_role_with_a_cloud_identity_gets_its_service_account_and_no_keys(pod: str, role: str) -> None:
    given = spec(**store(**{role: {"serviceAccountName": "cloud"}}))
    made = pods(given)
    assert {name: template["spec"]["serviceAccountName"] for name, template in made.items()} == {
        name: "cloud" if name == pod else "chat" for name in made
    }
    assert secrets(made[pod]) == set()
    assert len(service_accounts(OWNER, given)) == 1, "the other pods need ours"


def test_keys_of_a_role_replace_the_common_cloud_identity() -> None:
    given = spec(
        store={
            "bucket": "bucket",
            "credentials": {"serviceAccountName": "cloud", "roles": {"serving": {"secretRef": {"name": "own"}}}},
        }
    )
    made = pods(given)
    assert secrets(made["inference"]) == {"own"}
    assert made["inference"]["spec"]["serviceAccountName"] == "chat"
    assert made["trainer"]["spec"]["serviceAccountName"] == "cloud"
    assert len(service_accounts(OWNER, given)) == 1


def test_no_service_account_is_made_when_each_role_names_one() -> None:
    given = spec(**store(**{role: {"serviceAccountName": role} for role in PODS.values()}))
    assert service_accounts(OWNER, given) == []


def test_only_the_credentials_of_serving_count_as_a_change_of_the_inference_pods() -> None:
    before = choice_digest(OWNER, spec())
    for role in ("training", "validation"):
        assert choice_digest(OWNER, spec(**store(**{role: {"secretRef": {"name": "own"}}}))) == before
    assert choice_digest(OWNER, spec(**store(serving={"secretRef": {"name": "own"}}))) != before


def test_encryption_reaches_every_pod_and_unset_is_left_out() -> None:
    encryption = {"type": "SSE-KMS", "kmsKeyId": "alias/aurora"}
    kinds: dict[str, type[ServingSettings | TrainerSettings | ValidationSettings]] = {
        "inference": ServingSettings,
        "trainer": TrainerSettings,
        "validator": ValidationSettings,
    }
    for given, expected in ((encryption, encryption), (None, None)):
        made = pods(spec(store={"bucket": "bucket", "credentials": KEYS, "encryption": given}))
        for name, kind in kinds.items():
            text = variables(containers(made[name])[0])["AURORA_SETTINGS"]["value"]
            found = kind.from_json(text).store.encryption
            assert (found and found.model_dump(mode="json", by_alias=True)) == expected
            assert ("encryption" in text) is (expected is not None), "no setting at its default"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"credentials": KEYS | {"roles": {"serving": {}}}}, "exactly one of secretRef and serviceAccountName"),
        (
            {"credentials": KEYS | {"roles": {"training": KEYS | {"serviceAccountName": "b"}}}},
            "exactly one of secretRef and serviceAccountName",
        ),
        ({"encryption": {"type": "SSE-S3", "kmsKeyId": "alias/aurora"}}, "kmsKeyId needs type SSE-KMS"),
        ({"encryption": {"type": "AES256"}}, "SSE-S3"),
        ({"encryption": {"type": "SSE-KMS", "kmsKeyId": "a\nb"}}, "kmsKeyId"),
    ],
)
def test_a_contradiction_is_refused_in_words(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        spec(store={"bucket": "bucket", "credentials": KEYS} | wrong)
