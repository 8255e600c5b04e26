"""Somebody who has taken a container over gets no rights of another container, pod or person."""

from __future__ import annotations

import time

import pytest

from aurora_protocol.agent_api import AGENT_PORT, ENGINE_PORT
from tests.attacks.attack_rig import AttackRig
from tests.rig.fault_injection import kill_container

pytestmark = pytest.mark.timeout(1800)

SECRETS_IN_REACH = """
import os, pathlib
names = [n for n in os.environ if n.startswith("AWS_") or "TOKEN" in n]
roots = ("/etc/aurora", "/var/run/secrets", "/var/lib/aurora")
files = [str(path) for root in roots for path in pathlib.Path(root).rglob("*")
         if path.is_file() and "token" in path.name]
print(names + files)
"""
PLANTED = "import pathlib; pathlib.Path('/var/lib/aurora/owned').write_text('owned')"
PATHS = """
import pathlib
names = ("json.py", "sitecustomize.py", "usercustomize.py", "aurora_runtime.py")
paths = [pathlib.Path(folder, name) for folder in ("/tmp", "/var/lib/aurora") for name in names]
"""
PLANT = f"{PATHS}for path in paths: path.write_text({PLANTED!r})"
CLEAN = f"{PATHS}for path in paths: path.unlink(missing_ok=True)"
REQUEST = """
import urllib.error, urllib.request
try:
    print(urllib.request.urlopen(urllib.request.Request({url!r}, {body!r}, {headers!r}, method={method!r})).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""
CONNECT = """
import socket
try:
    socket.create_connection(({host!r}, {port}), timeout=2)
    print("connected")
except TimeoutError:
    print("no answer")
"""


def test_an_engine_has_neither_the_stores_keys_nor_a_token(rig: AttackRig) -> None:
    for pod in rig.inference_pods():
        assert rig.shell(pod["metadata"]["name"], "sglang", SECRETS_IN_REACH).strip() == "[]"


def test_the_admin_key_of_one_engine_opens_no_other(rig: AttackRig) -> None:
    first, second = rig.inference_pods()
    name = first["metadata"]["name"]
    key = rig.shell(name, "sglang", "print(open('/etc/aurora/keys/admin-key').read())").strip()
    headers = {"Authorization": f"Bearer {key}"}
    statuses = [
        _status(rig, name, f"http://{pod['status']['podIP']}:{ENGINE_PORT}/flush_cache", headers=headers)
        for pod in (first, second)
    ]
    assert statuses[0] == "200", "the key is the pod's own"
    assert statuses[1] == "401"


def test_an_agent_obeys_nobody_without_its_token(rig: AttackRig) -> None:
    pod = rig.inference_pods()[0]
    url = f"http://{pod['status']['podIP']}:{AGENT_PORT}/v1/draft"
    order = b'{"version": 0, "digest": "", "epoch": 1000}'
    for headers in ({}, {"Authorization": "Bearer guess"}):
        assert _status(rig, pod["metadata"]["name"], url, order, headers, "PUT") == "401"


def test_the_agent_of_another_pod_cannot_be_reached(rig: AttackRig) -> None:
    first, second = rig.inference_pods()
    outcomes = {}
    for port in (ENGINE_PORT, AGENT_PORT):
        connect = CONNECT.format(host=second["status"]["podIP"], port=port)
        outcomes[port] = rig.shell(first["metadata"]["name"], "sglang", connect).strip()
    assert outcomes[ENGINE_PORT] == "connected", "the pod or the policies are gone, so the agent's silence says nothing"
    assert outcomes[AGENT_PORT] == "no answer"


def test_no_container_runs_a_module_that_another_planted(rig: AttackRig) -> None:
    pod = rig.inference_pods()[0]["metadata"]["name"]
    rig.shell(pod, "sglang", PLANT)
    try:
        kill_container(rig.aurora, pod, "agent")
        rig.killed.add(f"{pod}/agent")
        rig.wait_until("the agent has restarted", lambda: rig.restart_count(pod, "agent") == 1)
        rig.wait_until("everything is healthy", rig.is_healthy)
        time.sleep(10)
        assert rig.shell(pod, "sglang", "import os; print(os.path.exists('/var/lib/aurora/owned'))").strip() == "False"
    finally:
        rig.shell(pod, "sglang", CLEAN)


def test_no_pod_of_a_speculator_has_a_token_of_kubernetes(rig: AttackRig) -> None:
    trainer = [(pod, "trainer") for pod in rig.component_pods("trainer")]
    for pod, container in [*trainer, *((pod, name) for pod in rig.inference_pods() for name in ("sglang", "agent"))]:
        program = "import os; print(os.path.exists('/var/run/secrets/kubernetes.io/serviceaccount/token'))"
        assert rig.shell(pod["metadata"]["name"], container, program).strip() == "False"


def _status(
    rig: AttackRig, pod: str, url: str, body: bytes = b"{}", headers: dict[str, str] | None = None, method: str = "POST"
) -> str:
    known = {"Content-Type": "application/json", **(headers or {})}
    return rig.shell(pod, "sglang", REQUEST.format(url=url, body=body, headers=known, method=method)).strip()
