"""The command writes the report whole or not at all, and replaces a file only on request."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from aurora_cli.commands import report as report_command
from aurora_cli.report.page.document import render
from aurora_cli.report.report import Report
from tests.unit.cli import report_example
from tests.unit.cli.fake_cluster import FakeApiServer, resource
from tests.unit.cli.test_report import check, tags_of
from tests.unit.fakes import FolderObjects


@pytest.fixture(name="objects")
def _objects(tmp_path: Path) -> FolderObjects:
    objects = FolderObjects(tmp_path / "store")
    report_example.put(objects, report_example.records())
    return objects


@pytest.fixture(name="_prepared", autouse=True)
def _prepare(server: FakeApiServer, objects: FolderObjects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_command, "open_store", lambda *_, **__: objects)
    server.add(resource(report_example.status()))


def test_the_command_writes_the_page_and_says_where(server: FakeApiServer, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    result = server.run("report", "chat", "-o", str(file))
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith(f"wrote {file}, ")
    check(file.read_text(encoding="utf-8"))
    assert "s3" not in tags_of(file.read_text(encoding="utf-8")).texts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "{folder}"], "is a folder; name a file"),
        (["-o", "{folder}/no/report.html"], "does not exist; create it"),
        (["-o", "{folder}/there.html"], "exists; name another file with -o, or add --overwrite"),
        (["-o", "{folder}/" + "x" * 300], "cannot be written"),
        (["-o", "{folder}/a.html", "--status-only", "--use-secret"], "--status-only reads no store"),
    ],
)
def test_a_place_that_cannot_be_written_is_one_line(
    server: FakeApiServer, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "there.html").write_text("mine")
    before = sorted(tmp_path.iterdir())
    result = server.run("report", "chat", *(one.format(folder=tmp_path) for one in arguments))
    assert result.exit_code == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "there.html").read_text() == "mine"


def test_a_file_is_replaced_only_on_request(server: FakeApiServer, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text("old")
    assert server.run("report", "chat", "-o", str(file), "--overwrite").exit_code == 0
    assert file.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_a_file_that_appears_while_the_report_is_made_is_kept(
    server: FakeApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "report.html"

    def meanwhile(report: Report) -> str:
        file.write_text("theirs")
        return render(report)

    monkeypatch.setattr(report_command, "render", meanwhile)
    result = server.run("report", "chat", "-o", str(file))
    assert (result.exit_code, "exists; name another file" in result.stderr) == (1, True)
    assert file.read_text() == "theirs"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["kubeconfig", "report.html", "store"]


def test_a_file_system_without_hard_links_is_explained(
    server: FakeApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    file = tmp_path / "report.html"
    assert "without hard links, add --overwrite" in server.run("report", "chat", "-o", str(file)).stderr
    assert server.run("report", "chat", "-o", str(file), "--overwrite").exit_code == 0


@pytest.mark.parametrize("arguments", [[], ["--overwrite"]])
def test_what_is_not_a_regular_file_is_refused(server: FakeApiServer, tmp_path: Path, arguments: list[str]) -> None:
    (target := tmp_path / "target").write_text("theirs")
    (tmp_path / "link.html").symlink_to(target)
    (tmp_path / "dangling.html").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe.html")
    kinds = {"link": "is a symlink", "dangling": "is a symlink", "pipe": "is not a regular file"}
    for name, message in kinds.items():
        result = server.run("report", "chat", "-o", str(tmp_path / f"{name}.html"), *arguments)
        assert (result.exit_code, message in result.stderr) == (1, True)
    assert target.read_text() == "theirs"
    assert not (tmp_path / "nothing").exists()


def test_a_store_that_does_not_answer_leaves_no_file(
    server: FakeApiServer, objects: FolderObjects, tmp_path: Path
) -> None:
    objects.down = True
    result = server.run("report", "chat", "-o", str(tmp_path / "report.html"))
    assert (result.exit_code, result.stderr) == (1, "error: the store is down\n")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["kubeconfig", "store"]


@pytest.mark.parametrize("arguments", [[], ["--overwrite"]])
def test_a_write_that_fails_leaves_no_part(
    server: FakeApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    monkeypatch.setattr(os, "link", full)
    result = server.run("report", "chat", "-o", str(tmp_path / "report.html"), *arguments)
    assert (result.exit_code, "No space left on device" in result.stderr) == (1, True)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["kubeconfig", "store"]


def test_a_report_of_the_status_alone_asks_no_store(
    server: FakeApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_command, "open_store", None)
    file = tmp_path / "report.html"
    assert server.run("report", "chat", "-o", str(file), "--status-only").exit_code == 0
    page = file.read_text(encoding="utf-8")
    assert "The store was not read" in page
    assert "Rejected" in page
