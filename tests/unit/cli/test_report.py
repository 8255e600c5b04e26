"""The report draws what is recorded, hides no record behind a damaged one, and runs nothing."""

from __future__ import annotations

import base64
import builtins
import hashlib
import re
import xml.etree.ElementTree as ET
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aurora_api.v1alpha1.status import HistoryEntry, SpeculatorStatus
from aurora_cli.commands import report as report_command
from aurora_cli.report import records as records_module
from aurora_cli.report.page import render
from aurora_cli.report.records import Records, read_records
from aurora_protocol.evidence_records import RatioEstimate
from aurora_store import Keys
from aurora_store.errors import ObjectArchived
from tests.unit.cli import report_example
from tests.unit.cli.fake_cluster import FakeApiServer, resource, speculator
from tests.unit.fakes import FolderObjects
from tests.unit.operator.worlds import NOW, evidence

RECORDS = report_example.records()


@pytest.fixture(scope="module", name="html")
def _html() -> str:
    """The page of the example."""
    return render(report_example.example(), RECORDS, report_example.END)


@pytest.fixture(name="objects")
def _objects(tmp_path: Path) -> FolderObjects:
    objects = FolderObjects(tmp_path / "store")
    report_example.put(objects, RECORDS)
    return objects


class Page(HTMLParser):
    """The tags, the texts, the policy and the pictures of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.policy = ""
        self.pictures: list[bytes] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attributes:
            assert not name.startswith("on"), name
            if name == "content" and (value or "").startswith("default-src"):
                self.policy = value or ""
            if name in ("src", "srcset"):
                kind, _, data = (value or "").partition(",")
                assert kind == "data:image/svg+xml;base64"
                self.pictures.append(base64.b64decode(data))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_a_browser_loads_and_runs_nothing(html: str) -> None:
    page, style = Page(html), html.partition("<style>")[2].partition("</style>")[0]
    assert "script" not in page.tags
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert page.policy.split("; ")[:3] == ["default-src 'none'", "img-src data:", f"style-src 'sha256-{digest}'"]
    assert len(page.pictures) == 8, "four pictures, each for light and for dark"
    for picture in page.pictures:
        tags = {element.tag.rpartition("}")[2] for element in ET.fromstring(picture).iter()}  # noqa: S314
        assert not tags & {"script", "image", "foreignObject", "a"}


def test_the_page_shows_the_figures_of_status_and_records(html: str) -> None:
    text = " ".join(Page(html).texts)
    last = RECORDS.evidence[-1].verdict.ratios[0]
    for figure in ("2.91", "1 nvidia.com/gpu", f"{last.estimate:.3f}x [{last.low:.3f}, {last.high:.3f}]", "RolledBack"):
        assert figure in text


def test_without_records_the_page_invents_nothing() -> None:
    page = Page(render(speculator(), Records(), NOW))
    text = " ".join(page.texts)
    assert page.pictures == []
    assert text.count("Nothing is stored about it yet.") == 4
    assert "not known" in text


def test_texts_of_others_are_texts() -> None:
    evil = "<script>alert(1)</script>\x1b[2J\u202e"
    status = SpeculatorStatus(history=[HistoryEntry(time=NOW, event=evil, version=1, message=evil)])
    page = render(speculator(status, target={"model": evil}), Records(left_out=(evil,)), NOW)
    assert "script" not in Page(page).tags
    assert page.count("&lt;script&gt;") == 4
    assert not {"\x1b", "\u202e"} & set(page)


def test_the_last_attempt_at_each_version_is_read(objects: FolderObjects) -> None:
    objects.put(Keys.evidence(1, 2), evidence(1, attempt=2).to_json())
    found = read_records(objects)
    assert (found.registrations, found.channel) == (list(RECORDS.registrations), list(RECORDS.channel))
    assert [(one.version, one.attempt) for one in found.evidence][:2] == [(1, 2), (2, 1)]
    assert (len(found.shards), found.left_out) == (len(RECORDS.shards), [])


def test_a_record_that_is_damaged_or_that_the_store_alone_refuses_is_named_and_hides_no_other(
    objects: FolderObjects,
) -> None:
    objects.put(Keys.evidence(2, 1), b"{}")
    early = RECORDS.channel[0].model_copy(update={"created": datetime(1, 1, 1, tzinfo=UTC)})
    objects.put(Keys.channel(1), early.to_json())
    objects.refused = {Keys.registration(3): ObjectArchived("InvalidObjectState")}
    found = read_records(objects)
    kept = [len(one) for one in (found.registrations, found.evidence, found.channel)]
    assert kept == [len(one) - 1 for one in (RECORDS.registrations, RECORDS.evidence, RECORDS.channel)]
    named = [sentence.partition(" ")[0] for sentence in found.left_out]
    assert named == [Keys.registration(3), Keys.evidence(2, 1), Keys.channel(1)]


def test_a_large_store_is_read_in_part_and_the_page_says_so(
    objects: FolderObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MAX_VERSIONS", "MAX_DECISIONS", "MAX_SHARDS"):
        monkeypatch.setattr(records_module, name, 4)
    found = read_records(objects)
    assert [len(one) for one in (found.registrations, found.channel, found.shards)] == [4, 4, 4]
    assert [re.findall(r"\d+ of \d+", sentence) for sentence in found.left_out] == [
        ["4 of 11"],
        ["4 of 10"],
        ["4 of 150"],
    ]


@settings(max_examples=10, deadline=None)
@given(st.lists(st.floats(allow_nan=True), min_size=3, max_size=3), st.datetimes(timezones=st.just(UTC)))
def test_any_record_is_drawn_or_left_out(numbers: list[float], moment: datetime) -> None:
    estimate, low, high = numbers
    one = RECORDS.evidence[0]
    ratios = tuple(
        RatioEstimate(**{**each.model_dump(), "estimate": estimate, "low": low, "high": high})
        for each in one.verdict.ratios
    )
    odd = one.model_copy(update={"verdict": one.verdict.model_copy(update={"ratios": ratios}), "started": moment})
    if records_module.is_true_evidence(odd):
        render(speculator(), Records(evidence=(odd,)), NOW)


def test_the_command_writes_the_page_and_replaces_a_file_only_on_request(
    server: FakeApiServer, objects: FolderObjects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_command, "open_store", lambda *_, **__: objects)
    server.add(resource(report_example.status()))
    file = tmp_path / "report.html"
    assert server.run("report", "chat", "-o", str(file)).exit_code == 0
    assert file.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    file.write_text("mine")
    for refused in (file, tmp_path / "no" / "report.html"):
        assert server.run("report", "chat", "-o", str(refused)).exit_code == 1
    assert file.read_text() == "mine"
    objects.down = True
    assert server.run("report", "chat", "-o", str(file), "--overwrite").stderr == "error: the store is down\n"
    assert file.read_text() == "mine"
    objects.down = False
    assert server.run("report", "chat", "-o", str(file), "--overwrite").exit_code == 0
    assert file.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_without_the_extra_the_command_names_it(server: FakeApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    load = builtins.__import__

    def refuse(name: str, *arguments: Any, **more: Any) -> Any:
        if name == "aurora_cli.report.page":
            raise ModuleNotFoundError(name="matplotlib")
        return load(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    result = server.run("report", "chat", "-o", "report.html")
    assert (result.exit_code, "the extra report (matplotlib is missing)" in result.stderr) == (1, True)
