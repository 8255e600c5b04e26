"""A client reaches the engine's port, and nothing else. No request ends an engine, shows a key or gives an order."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.attacks.attack_rig import AttackRig

pytestmark = pytest.mark.timeout(1800)
VOCABULARY = 49152
MANY = 1_000_000
DEADLY: dict[str, dict[str, Any]] = {
    "a token id beyond the vocabulary": {"input_ids": [1, VOCABULARY], "sampling_params": {"max_new_tokens": 4}},
    "a negative token id": {"input_ids": [1, -5], "sampling_params": {"max_new_tokens": 4}},
    "a token id of 64 bits": {"input_ids": [1, 2**62], "sampling_params": {"max_new_tokens": 4}},
    "more log-probabilities than tokens": {"text": "a", "return_logprob": True, "top_logprobs_num": MANY},
    "a session": {"text": "a", "session_params": {"id": []}},
    "a million answers": {"text": "a", "sampling_params": {"n": MANY, "max_new_tokens": 4}},
}


@pytest.mark.parametrize("body", DEADLY.values(), ids=DEADLY)
def test_a_request_that_would_end_the_scheduler_is_refused(rig: AttackRig, body: dict[str, Any]) -> None:
    assert rig.post("/generate", body).status == 400


def test_a_million_answers_are_refused_on_the_openai_endpoint_too(rig: AttackRig) -> None:
    body = {"model": "default", "n": MANY, "messages": [{"role": "user", "content": "a"}], "max_tokens": 4}
    assert rig.post("/v1/chat/completions", body).status == 400


def test_a_body_of_a_hundred_mebibytes_is_refused_before_it_is_sent(rig: AttackRig) -> None:
    connection = http.client.HTTPConnection(urlsplit(rig.aurora.url(rig.name)).netloc, timeout=30)
    with contextlib.closing(connection):
        connection.putrequest("POST", "/generate")
        connection.putheader("Content-Length", str(100 << 20))
        connection.endheaders()
        assert connection.getresponse().status == 413


ORDERS: dict[str, dict[str, Any]] = {
    "/update_weights_from_disk": {"model_path": "/tmp/evil"},  # noqa: S108 - an attack
    "/flush_cache": {},
    "/pause_generation": {},
    "/release_memory_occupation": {},
    "/start_profile": {},
    "/aurora/internal": {},
}


@pytest.mark.parametrize("path", ORDERS)
def test_an_order_without_the_admin_key_is_not_obeyed(rig: AttackRig, path: str) -> None:
    for headers in ({}, {"Authorization": "Bearer guess"}, {"Authorization": "Bearer guess", "Host": "127.0.0.1"}):
        assert rig.post(path, ORDERS[path], headers).status in (401, 403, 404)


def test_no_answer_and_no_log_of_an_engine_shows_a_key(rig: AttackRig) -> None:
    keys = rig.aurora.cluster.get("secret", f"{rig.name}-keys", "-n", rig.aurora.namespace)["data"]
    pod = rig.inference_pods()[0]["metadata"]["name"]
    engine_key = rig.shell(pod, "sglang", "print(open('/etc/aurora/keys/admin-key').read())").strip()
    secrets = [engine_key, *(base64.b64decode(value).decode() for value in keys.values())]
    shown = json.dumps([rig.post(path, {}).text for path in ("/server_info", "/get_server_info", "/generate")])
    for container in ("sglang", "agent"):
        shown += rig.aurora.cluster.kubectl("logs", pod, "-c", container, "-n", rig.aurora.namespace)
    assert [secret for secret in secrets if secret in shown] == []
