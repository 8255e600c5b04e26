"""``draft`` runs a program in the trainer's pod. A stand-in for kubectl runs it on this machine instead."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.fake_cluster import FakeApiServer, resource

KUBECTL = """#!{python}
import pathlib, sys
log = pathlib.Path({folder!r})
with (log / "calls").open("a") as calls:
    calls.write(" ".join(sys.argv[1:]) + "\\n")
if "cp" in sys.argv:
    to = pathlib.Path(sys.argv[-1])
    to.mkdir()
    (to / "model.safetensors").write_bytes(b"weights")
    if (log / "broken").exists():
        sys.exit("error: lost connection to pod")
elif (log / "failure").exists() and "aurora-draft" in sys.argv:
    sys.exit("Traceback\\nversion 9 is not registered\\ncommand terminated with exit code 1")
else:
    print("it fits")
"""


@pytest.fixture(name="machine")
def _machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the stand-in, its log and its faults."""
    program = tmp_path / "bin" / "kubectl"
    program.parent.mkdir()
    program.write_text(KUBECTL.format(python=sys.executable, folder=str(tmp_path)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    return tmp_path


@pytest.fixture(name="trainer")
def _trainer(server: FakeApiServer) -> FakeApiServer:
    """A speculator with two pods of a trainer, one of them ready."""
    server.add(resource())
    for name, ready in (("chat-trainer-a", "False"), ("chat-trainer-b", "True")):
        server.objects[f"/api/v1/namespaces/team/pods/{name}"] = pod(name, ready)
    return server


def pod(name: str, ready: str) -> dict[str, Any]:
    status = {"conditions": [{"type": "Ready", "status": ready}]}
    return {"metadata": {"name": name}, "spec": {"containers": []}, "status": status}


def calls(machine: Path) -> list[str]:
    return (machine / "calls").read_text().splitlines()


def test_a_draft_is_exported_in_the_ready_pod_copied_and_removed_there(trainer: FakeApiServer, machine: Path) -> None:
    to = machine / "head"
    result = trainer.run(
        "draft", "export", "chat", "--to", str(to), "--version", "4", "--context", "there", "-n", "team"
    )
    assert result.exit_code == 0, result.output
    assert (to / "model.safetensors").read_bytes() == b"weights"
    made, copied, removed = calls(machine)
    assert made.startswith("--context=there --namespace=team exec chat-trainer-b --container=trainer -- aurora-draft")
    assert made.endswith("--format=sglang --version=4")
    folder = made.split("--to=")[1].split()[0]
    assert f"cp --container=trainer chat-trainer-b:{folder} " in copied
    assert removed.endswith(f"-- rm -rf {folder}")


@pytest.mark.parametrize(
    ("fault", "line"), [("failure", "version 9 is not registered"), ("broken", "lost connection to pod")]
)
def test_a_failure_is_its_last_line_and_leaves_nothing(
    trainer: FakeApiServer, machine: Path, fault: str, line: str
) -> None:
    (machine / fault).touch()
    result = trainer.run("draft", "export", "chat", "--to", str(machine / "head"))
    assert (result.exit_code, result.stderr) == (1, f"error: {line}\n")
    assert "rm -rf" in calls(machine)[-1]
    assert {one.name for one in machine.iterdir()} == {"bin", "calls", "kubeconfig", fault}


def test_an_export_overwrites_nothing(trainer: FakeApiServer, machine: Path) -> None:
    for to in (machine, machine / "no" / "head"):
        assert trainer.run("draft", "export", "chat", "--to", str(to)).exit_code == 1
    assert not (machine / "calls").exists()


def test_a_head_is_checked_in_the_trainers_pod(trainer: FakeApiServer, machine: Path) -> None:
    result = trainer.run("draft", "check", "chat", "org/head", "--revision", "main")
    assert (result.exit_code, result.stdout) == (0, "it fits\n")
    assert calls(machine)[0].endswith("-- aurora-draft check org/head --revision=main")
    assert trainer.run("draft", "check", "chat", "--", "--help").exit_code == 1


def test_without_a_trainer_or_kubectl_the_error_says_so(
    trainer: FakeApiServer, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(machine))
    assert "kubectl is not on PATH" in trainer.run("draft", "check", "chat", "org/head").stderr
    trainer.objects = {key: one for key, one in trainer.objects.items() if "/pods/" not in key}
    assert "the trainer of chat is stopped" in trainer.run("draft", "check", "chat", "org/head").stderr
