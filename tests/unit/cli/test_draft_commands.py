"""``draft`` runs a program in the trainer's pod. A stand-in for kubectl runs it on this machine instead."""

from __future__ import annotations

import io
import os
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from aurora_cli.cluster import pod_program
from aurora_cli.commands import draft
from tests.unit.cli.fake_cluster import FakeApiServer, resource
from tests.unit.cli.test_decisions import CANARY

HANG_SECONDS = 60
KUBECTL = """#!{python}
import pathlib, sys, time
log = pathlib.Path({folder!r})
with (log / "calls").open("a") as calls:
    calls.write(" ".join(sys.argv[1:]) + "\\n")
program, *arguments = sys.argv[sys.argv.index("--") + 1:]
if (log / f"hang-{{program}}").exists():
    time.sleep({hang_seconds})
elif program == "tar":
    sys.stdout.buffer.write((log / "answer.tar").read_bytes())
    if (log / "broken").exists():
        sys.exit((log / "broken").read_text())
elif (log / "failure").exists() and program == "aurora-draft":
    sys.stderr.write((log / "failure").read_text())
    sys.exit(1)
else:
    print("it fits")
"""


@pytest.fixture(name="machine")
def _machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the stand-in, its log and its answers."""
    program = tmp_path / "bin" / "kubectl"
    program.parent.mkdir()
    program.write_text(KUBECTL.format(python=sys.executable, folder=str(tmp_path), hang_seconds=HANG_SECONDS))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    archive(tmp_path, {"./config.json": b"{}", "./model.safetensors": b"weights"})
    return tmp_path


def archive(machine: Path, files: dict[str, bytes], *, link: str = "") -> None:
    with tarfile.open(machine / "answer.tar", "w") as made:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            made.addfile(entry, io.BytesIO(data))
        if link:
            entry = tarfile.TarInfo("./link")
            entry.type, entry.linkname = tarfile.SYMTYPE, link
            made.addfile(entry)


@pytest.fixture(name="server")
def _server() -> FakeApiServer:
    server = FakeApiServer.of(resource(CANARY))
    for name, ready in (("chat-trainer-a", "False"), ("chat-trainer-b", "True")):
        server.objects[f"/api/v1/namespaces/team/pods/{name}"] = pod(name, ready)
    return server


def pod(name: str, ready: str) -> dict[str, Any]:
    metadata = {"name": name, "labels": {"app.kubernetes.io/component": "trainer"}}
    return {"metadata": metadata, "status": {"conditions": [{"type": "Ready", "status": ready}]}}


def calls(machine: Path) -> list[str]:
    return (machine / "calls").read_text().splitlines()


def test_a_draft_is_exported_in_the_ready_pod_copied_and_removed_there(server: FakeApiServer, machine: Path) -> None:
    to = machine / "head"
    result = server.run("--context", "prod", "draft", "export", "chat", "--to", str(to), "--version", "4")
    assert result.exit_code == 0, result.output
    assert (to / "model.safetensors").read_bytes() == b"weights"
    made, copied, removed = calls(machine)
    assert made.startswith("--context=prod --namespace=team exec chat-trainer-b --container=trainer -- aurora-draft")
    assert made.endswith("--format=sglang --version=4")
    folder = made.split("--to=")[1].split()[0]
    assert f"-C {folder} ." in copied
    assert removed.endswith(f"-- rm -rf {folder}")


def test_a_failure_in_the_pod_is_its_last_line_and_leaves_nothing_there(server: FakeApiServer, machine: Path) -> None:
    failure = "Traceback\\nversion 9 is not registered\\ncommand terminated with exit code 1\\n"
    (machine / "failure").write_text(failure.replace("\\n", "\n"))
    result = server.run("draft", "export", "chat", "--to", str(machine / "head"))
    assert (result.exit_code, result.stderr) == (1, "error: version 9 is not registered\n")
    assert "rm -rf" in calls(machine)[-1]


@pytest.mark.parametrize(("name", "link"), [("../../outside", ""), ("./inside", "/etc/passwd")])
def test_a_pod_writes_nothing_outside_the_folder(server: FakeApiServer, machine: Path, name: str, link: str) -> None:
    archive(machine, {name: b"x"}, link=link)
    result = server.run("draft", "export", "chat", "--to", str(machine / "deep" / "head"))
    assert result.exit_code == 1
    assert "cannot be unpacked" in result.stderr
    assert not (machine / "outside").exists()


def test_an_export_overwrites_nothing(server: FakeApiServer, machine: Path) -> None:
    result = server.run("draft", "export", "chat", "--to", str(machine))
    assert result.exit_code == 1
    assert "is not an empty folder" in result.stderr
    assert not (machine / "calls").exists()


@pytest.mark.parametrize("received_bytes", [0, 600, 1024, 1200, 1540, 2048])
def test_a_copy_that_breaks_off_leaves_no_file_so_that_it_can_be_tried_again(
    server: FakeApiServer, machine: Path, received_bytes: int
) -> None:
    whole = (machine / "answer.tar").read_bytes()
    (machine / "answer.tar").write_bytes(whole[:received_bytes])
    to = machine / "head"
    result = server.run("draft", "export", "chat", "--to", str(to))
    assert result.exit_code == 1
    assert "cannot be unpacked" in result.stderr
    assert list(to.iterdir()) == []
    (machine / "answer.tar").write_bytes(whole)
    assert server.run("draft", "export", "chat", "--to", str(to)).exit_code == 0
    assert sorted(file.name for file in to.iterdir()) == ["config.json", "model.safetensors"]


def test_a_copy_that_hangs_ends(server: FakeApiServer, machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pod_program, "MAX_SECONDS", 3.0)
    (machine / "hang-tar").touch()
    result = server.run("draft", "export", "chat", "--to", str(machine / "head"))
    assert (result.exit_code, result.stderr) == (
        1,
        "error: tar in the pod did not end within 3 s; check the connection to the cluster\n",
    )
    assert list((machine / "head").iterdir()) == []


@pytest.mark.parametrize("received_bytes", [0, 600, 1540, 2048])
def test_a_copy_that_breaks_off_gives_the_reason_of_kubectl(
    server: FakeApiServer, machine: Path, received_bytes: int
) -> None:
    whole = (machine / "answer.tar").read_bytes()
    (machine / "answer.tar").write_bytes(whole[:received_bytes])
    (machine / "broken").write_text("error: lost connection to pod")
    result = server.run("draft", "export", "chat", "--to", str(machine / "head"))
    assert (result.exit_code, result.stderr) == (1, "error: lost connection to pod\n")
    assert list((machine / "head").iterdir()) == []


def test_a_file_that_cannot_be_moved_leaves_none(
    server: FakeApiServer, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename
    targets: list[Path] = []

    def fail_at_the_second(file: Path, target: Path) -> Path:
        targets.append(target)
        if len(targets) == 2:
            raise OSError(28, "No space left on device")
        return rename(file, target)

    monkeypatch.setattr(Path, "rename", fail_at_the_second)
    to = machine / "head"
    result = server.run("draft", "export", "chat", "--to", str(to))
    assert result.exit_code == 1
    assert result.stderr.endswith(f"cannot be copied to {to}: No space left on device\n")
    assert targets[0].parent == to
    assert list(to.iterdir()) == []


def test_a_removal_that_hangs_does_not_hold_up_the_command(
    server: FakeApiServer, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert draft.REMOVAL_SECONDS <= 30
    monkeypatch.setattr(draft, "REMOVAL_SECONDS", 0.5)
    (machine / "hang-rm").touch()
    began = time.monotonic()
    result = server.run("draft", "export", "chat", "--to", str(machine / "head"))
    assert result.exit_code == 0, result.output
    assert time.monotonic() - began < HANG_SECONDS
    assert (machine / "head" / "model.safetensors").exists()


def test_a_name_that_does_not_exist_leaves_no_folder(server: FakeApiServer, machine: Path) -> None:
    result = server.run("draft", "export", "chta", "--to", str(machine / "head"))
    assert result.exit_code == 1
    assert "no AuroraSpeculator chta" in result.stderr
    assert not (machine / "head").exists()


def test_a_folder_that_cannot_be_made_is_refused_before_anything_runs(server: FakeApiServer, machine: Path) -> None:
    result = server.run("draft", "export", "chat", "--to", str(machine / "answer.tar" / "head"))
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {machine}/answer.tar/head cannot be written: ")
    assert not (machine / "calls").exists()


def test_a_head_is_checked_in_the_trainers_pod(server: FakeApiServer, machine: Path) -> None:
    result = server.run("draft", "check", "chat", "org/head", "--revision", "main")
    assert (result.exit_code, result.stdout) == (0, "it fits\n")
    assert calls(machine)[0].endswith("-- aurora-draft check org/head --revision=main")


def test_without_a_trainer_or_kubectl_the_error_says_so(
    server: FakeApiServer, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = FakeApiServer.of(resource(CANARY))
    assert "its pod is stopped or not ready" in without.run("draft", "check", "chat", "org/head").stderr
    monkeypatch.setenv("PATH", str(machine))
    assert "kubectl is not on PATH" in server.run("draft", "check", "chat", "org/head").stderr
