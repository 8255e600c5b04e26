"""``erase`` makes a Job with the user's kubectl. A stand-in for kubectl answers it."""

from __future__ import annotations

import base64
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from aurora_cli.commands import erase
from aurora_operator.children.trainer_deployment import trainer_deployment
from aurora_protocol.tag_hash import tag_hash, tag_key, tag_number, traffic_secret
from tests.unit.cli.fake_cluster import FakeApiServer
from tests.unit.operator.worlds import CONFIG, OWNER, spec

KEY = b"the speculator's key"
KUBECTL = """#!{python}
import json, pathlib, sys
folder = pathlib.Path({folder!r})
arguments = [each for each in sys.argv[1:] if not each.startswith("--context")]
with (folder / "calls").open("a") as calls:
    calls.write(" ".join(sys.argv[1:]) + "\\n")
assert arguments[0] == "--namespace=team"
if (folder / arguments[1]).exists():
    sys.exit((folder / arguments[1]).read_text())
if arguments[1] == "create":
    (folder / "job.json").write_text(sys.stdin.read())
    print('{{"metadata": {{"name": "chat-trainer-erase-abc"}}}}')
elif arguments[1] == "get":
    print((folder / ("{{}}.answer".format(arguments[2]))).read_text())
elif arguments[1] == "logs":
    print("erased 3 requests from 2 shards; none is left in 9 shards")
"""


def hash_of(tag: str) -> str:
    return tag_hash(tag_number(tag_key(traffic_secret(KEY)), tag))


@pytest.fixture(name="machine")
def _machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: FakeApiServer) -> Path:
    program = tmp_path / "bin" / "kubectl"
    program.parent.mkdir()
    program.write_text(KUBECTL.format(python=sys.executable, folder=str(tmp_path)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setattr(erase, "POLL_SECONDS", 0.0)
    answer(tmp_path, "deployment", trainer())
    secret = {"metadata": {"name": "chat-keys"}, "data": {"admin-key": base64.b64encode(KEY).decode()}}
    server.objects["/api/v1/namespaces/team/secrets/chat-keys"] = secret
    answer(tmp_path, "job", ended("Complete"))
    return tmp_path


def trainer() -> dict[str, Any]:
    """The Deployment of a trainer with a GPU, an account of its own and a label of the user."""
    template = {
        "metadata": {"labels": {"azure.workload.identity/use": "true"}},
        "spec": {
            "containers": [{"name": "trainer", "resources": {"limits": {"nvidia.com/gpu": 1, "memory": "32Gi"}}}],
            "nodeSelector": {"pool": "a"},
        },
    }
    credentials = {"secretRef": {"name": "keys"}}
    given = spec(training={"template": template}, store={"bucket": "bucket", "credentials": credentials})
    return trainer_deployment(OWNER, given, CONFIG, 1)


def answer(machine: Path, kind: str, value: Any) -> None:
    (machine / f"{kind}.answer").write_text(json.dumps(value))


def ended(condition: str) -> dict[str, Any]:
    return {"status": {"conditions": [{"type": condition, "status": "True"}]}}


def calls(machine: Path) -> list[str]:
    return (machine / "calls").read_text().splitlines()


@pytest.mark.parametrize("by_stdin", [False, True])
def test_the_job_gets_the_hashes_and_the_trainer_restarts_after_it(
    server: FakeApiServer, machine: Path, *, by_stdin: bool
) -> None:
    tags = () if by_stdin else ("--tag", "tenant-7", "--tag", "tenant 8")
    result = server.run("erase", "chat", *tags, "--context=there", "-n", "team", stdin="tenant-7\ntenant 8\n")
    assert result.exit_code == 0, result.stderr
    assert "erased 3 requests from 2 shards" in result.stdout
    job = json.loads((machine / "job.json").read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["command"] == [*erase.PROGRAM, *sorted(map(hash_of, ("tenant-7", "tenant 8")))]
    assert "tenant" not in (machine / "job.json").read_text() + "".join(calls(machine))
    assert [call.split()[2] for call in calls(machine)] == ["get", "create", "get", "logs", "rollout"]
    assert calls(machine)[-1] == "--context=there --namespace=team rollout restart deployment/chat-trainer"


def test_the_job_is_the_trainers_pod_without_its_gpu_and_its_labels(server: FakeApiServer, machine: Path) -> None:
    assert server.run("erase", "chat", "--hash", "0123456789abcdef").exit_code == 0
    assert not any("secrets" in path for _, path, _ in server.calls), "a hash needs no key"
    job, former = json.loads((machine / "job.json").read_text()), trainer()["spec"]["template"]
    pod, (container,) = job["spec"]["template"]["spec"], job["spec"]["template"]["spec"]["containers"]
    for field in ("serviceAccountName", "securityContext", "volumes", "nodeSelector", "automountServiceAccountToken"):
        assert pod[field] == former["spec"][field]
    (of_trainer,) = former["spec"]["containers"]
    for field in ("image", "env", "volumeMounts", "securityContext"):
        assert container[field] == of_trainer[field]
    assert container["resources"]["limits"] == {"memory": "32Gi"}
    assert job["metadata"]["labels"] == {"azure.workload.identity/use": "true"}
    assert job["spec"]["template"]["metadata"]["labels"] == job["metadata"]["labels"]
    assert job["spec"]["ttlSecondsAfterFinished"] == erase.KEPT_SECONDS
    assert pod["restartPolicy"] == "Never"
    assert yaml.safe_dump(job)


def test_a_failed_job_is_an_error_and_the_trainer_goes_on(server: FakeApiServer, machine: Path) -> None:
    answer(machine, "job", ended("Failed"))
    result = server.run("erase", "chat", "--tag", "a")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: job/chat-trainer-erase-abc failed")
    assert "erased 3 requests" in result.stdout
    assert "rollout" not in calls(machine)[-1]


def test_without_waiting_it_says_what_to_do(server: FakeApiServer, machine: Path) -> None:
    result = server.run("erase", "chat", "--tag", "a", "--no-wait")
    assert "kubectl -n team rollout restart deployment/chat-trainer" in result.stdout
    assert [call.split()[2] for call in calls(machine)] == ["get", "create"]


def test_an_error_of_kubectl_is_one_line_and_nothing_is_made(server: FakeApiServer, machine: Path) -> None:
    (machine / "get").write_text('error: deployments.apps "chat-trainer" not found')
    result = server.run("erase", "chat", "--hash", "0123456789abcdef")
    assert result.stderr == 'error: deployments.apps "chat-trainer" not found\n'
    assert not (machine / "job.json").exists()


@pytest.mark.parametrize("arguments", [(), ("--hash", "0" * 16), ("--hash", "tenant-7")])
def test_what_is_no_tag_and_no_hash_is_refused(
    server: FakeApiServer, machine: Path, arguments: tuple[str, ...]
) -> None:
    assert server.run("erase", "chat", *arguments, stdin="").exit_code == 2
    assert not (machine / "calls").exists()
