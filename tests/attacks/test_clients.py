"""A client reaches the engine's port, and nothing else. No request shows a key or gives an order."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from tests.attacks.attack_rig import AttackRig

pytestmark = pytest.mark.timeout(1800)


def test_a_session_is_refused(rig: AttackRig) -> None:
    assert rig.post("/generate", {"text": "a", "session_params": {"id": []}}).status == 400


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
