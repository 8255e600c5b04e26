"""The report says what the status and the stored records say, and its page is safe to open."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aurora_api.v1alpha1.status import HistoryEntry, SpeculatorStatus, TrainingStatus
from aurora_cli.report import timeline, traffic
from aurora_cli.report.builder import build
from aurora_cli.report.measurements import measurement, version_speeds
from aurora_cli.report.page.document import render
from aurora_cli.report.stored_records import MAX_EARLIER_ATTEMPTS, MAX_SHARDS, MAX_VERSIONS, StoredRecords
from aurora_cli.report_reader import read_records
from aurora_cli.speculator import Speculator
from aurora_protocol.evidence_records import Arm, RatioEstimate, VerdictKind
from aurora_protocol.training_records import ShapeCounts
from aurora_store import Keys
from aurora_store.errors import KeyUnusable, ObjectArchived, StoreError
from tests.example_count import example_count
from tests.unit.cli import report_example
from tests.unit.cli.fake_cluster import speculator
from tests.unit.cli.report_example import END, START, example, put, records
from tests.unit.fakes import FolderObjects
from tests.unit.operator.worlds import NOW, channel, evidence, registration

RECORDS = records()
REPORT = build(example(), RECORDS, END)
PAGE = render(REPORT)


# The model ------------------------------------------------------------------------------------------------------------


def test_the_speedups_are_those_of_the_evidence() -> None:
    for measured, record in zip(REPORT.measurements, RECORDS.evidence, strict=True):
        stated = {(one.numerator, one.denominator, one.concurrency): one for one in record.verdict.ratios}
        for concurrency in report_example.CONCURRENCIES:
            found = measured.ratio(Arm.CANDIDATE, Arm.OFF, concurrency)
            expected = stated[Arm.CANDIDATE, Arm.OFF, concurrency]
            assert found is not None
            assert (found.estimate, found.low, found.high) == (expected.estimate, expected.low, expected.high)


def test_a_version_without_a_measurement_of_its_own_has_the_speed_that_it_had_as_the_active_version() -> None:
    assert [one.version for one in REPORT.speeds] == list(range(report_example.VERSIONS))
    initial, first = REPORT.speeds[0], REPORT.measurements[0]
    assert initial.ratios[0] == first.ratio(Arm.ACTIVE, Arm.OFF, 1)
    assert REPORT.speeds[1].ratios[0] == first.ratio(Arm.CANDIDATE, Arm.OFF, 1)


def test_a_pass_that_the_samples_do_not_show_is_doubted_and_a_true_one_is_not() -> None:
    assert measurement(evidence(4)).doubt == ""
    slow = tuple(one.model_copy(update={"seconds": one.seconds * 2}) for one in evidence(4).samples)
    forged = tuple(
        changed if changed.arm is Arm.CANDIDATE else one for one, changed in zip(evidence(4).samples, slow, strict=True)
    )
    doubted = measurement(evidence(4, samples=forged))
    assert "do not meet even the lowest thresholds that the API allows" in doubted.doubt
    assert [one.outcome for one in version_speeds([doubted])][-1] == "Pass, which its samples do not show"
    assert measurement(evidence(4, VerdictKind.REJECT, samples=forged)).doubt == ""


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 0.0, -1.0, 1e300])
def test_a_ratio_that_cannot_be_one_is_not_drawn(value: float) -> None:
    verdict = evidence(4).verdict
    odd = verdict.ratios[0].model_copy(update={"estimate": value})
    found = measurement(evidence(4, verdict=verdict.model_copy(update={"ratios": (odd, *verdict.ratios[1:])})))
    assert len(found.ratios) == len(verdict.ratios) - 1


def test_earlier_attempts_are_in_a_table_with_time_verdict_and_interval() -> None:
    (earlier,) = RECORDS.earlier_evidence
    table = PAGE[PAGE.index("Earlier attempts: 1") :]
    rows = re.findall(r"<tr>(.*?)</tr>", table[: table.index("</table>")])[1:]
    over_off = [one for one in earlier.verdict.ratios if (one.numerator, one.denominator) == (Arm.CANDIDATE, Arm.OFF)]
    assert len(rows) == len(over_off) == len(report_example.CONCURRENCIES)
    for row, ratio in zip(rows, over_off, strict=True):
        assert re.findall(r"<td>(.*?)</td>", row) == [
            *("7", "1", f"{earlier.finished:%Y-%m-%d %H:%M}", "5", "Inconclusive", str(ratio.concurrency)),
            *(f"{ratio.estimate:.3f}x", f"{ratio.low:.3f} to {ratio.high:.3f}"),
        ]
    last = next(one for one in REPORT.measurements if one.version == earlier.version)
    assert last.attempt == 2
    assert earlier.finished < last.started
    nothing = earlier.model_copy(update={"verdict": earlier.verdict.model_copy(update={"ratios": ()})})
    page = render(build(example(), replace(RECORDS, earlier_evidence=(nothing,)), END))
    assert "Earlier attempts: 1" in page, "an attempt that measured nothing is an attempt too"
    assert "Earlier attempts" not in render(build(example(), replace(RECORDS, earlier_evidence=()), END))


def test_the_time_of_measuring_counts_every_attempt() -> None:
    (figure,) = (one for one in REPORT.training if one.name == "Time of measuring")
    assert figure.note == "attempts: 11, at 10 versions"


def test_tokens_learned_are_interpolated_between_versions_and_unknown_before_the_first() -> None:
    at = traffic.learned_at([(START + timedelta(hours=2), 200), (START, 0), (START + timedelta(hours=2), 200)])
    assert at(START - timedelta(seconds=1)) is None
    assert at(START + timedelta(hours=1)) == 100
    assert at(START + timedelta(hours=9)) == 200
    assert traffic.learned_at([])(START) is None


def test_served_versions_cover_the_time_without_gaps() -> None:
    spans = timeline.served_spans(RECORDS.channel, END)
    assert [one.version for one in spans] == [0, 1, 2, 4, 5, 6, 5, 7, 9, 10]
    assert all(one.end == after.start for one, after in pairwise(spans))
    assert spans[-1].end == END


def test_the_cost_of_training_and_what_speculation_saves_are_shown() -> None:
    training = TrainingStatus(devices="1 nvidia.com/gpu", saved_devices="0.05 nvidia.com/gpu")
    status = SpeculatorStatus(training=training)
    found = {one.name: one.value for one in build(speculator(status), StoredRecords(), NOW).training}
    assert (found["Held by the trainer"], found["Saved by speculation"]) == ("1 nvidia.com/gpu", "0.05 nvidia.com/gpu")
    unknown = {one.name: one.value for one in REPORT.training}
    assert (unknown["Held by the trainer"], unknown["Saved by speculation"]) == ("", "")


def test_a_speculator_without_status_and_records_says_that_it_knows_nothing() -> None:
    page = render(build(speculator(None), StoredRecords(), NOW))
    assert "not known" in page
    assert "<polyline" not in page
    assert "No operator has written a status yet." in page


# The page -------------------------------------------------------------------------------------------------------------


class Tags(HTMLParser):
    """Collects what a page holds."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def tags_of(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    tags.close()
    return tags


KNOWN_TAGS = {tag for tag, _ in tags_of(PAGE).found}


def check(page: str) -> None:
    """Nothing but our own elements and attributes, and no reference to anything outside of the page."""
    tags = tags_of(page)
    assert {tag for tag, _ in tags.found} <= KNOWN_TAGS
    assert not KNOWN_TAGS & {"script", "img", "iframe", "object", "embed", "link", "base", "form", "use", "image"}
    for tag, attributes in tags.found:
        assert not {name for name in attributes if name.startswith("on") or name in {"src", "style", "srcset"}}, tag
        assert (attributes.get("href") or "#").startswith("#")
    assert not re.search(r"url\(|@import|//", page[page.index("<style>") : page.index("</style>")])


def test_the_page_refers_to_nothing_outside_and_runs_nothing() -> None:
    check(PAGE)
    assert "default-src &#x27;none&#x27;" in PAGE
    assert "http://" not in PAGE.replace("http-equiv", "")
    assert "https://" not in PAGE


def test_every_link_of_the_page_leads_to_a_heading() -> None:
    found = tags_of(PAGE).found
    anchors = {attributes["id"] for _, attributes in found if "id" in attributes}
    assert {(attributes["href"] or "")[1:] for tag, attributes in found if tag == "a"} <= anchors


def test_every_chart_is_described() -> None:
    for tag, attributes in tags_of(PAGE).found:
        if tag == "svg":
            assert attributes.get("aria-label") or attributes.get("aria-hidden") == "true"


def test_what_is_not_recorded_is_said() -> None:
    for words in (
        "The arm that all requests of a batch shared",
        "24 of 150 shards that were read do not say which shapes their rounds had",
        "Live tokens per second are not stored",
        "Seconds that devices were busy",
    ):
        assert words in PAGE


HOSTILE = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        [
            "<script>alert(1)</script>",
            '"><img src=x onerror=alert(1)>',
            "</style><script>",
            "' onload='x",
            "</svg><svg onload=alert(1)>",
            "&lt;b&gt;",
            "javascript:alert(1)",
            "\x1b[2J\u202e",
            "]]>",
            "<!--",
        ]
    ),
)


@settings(max_examples=example_count(60))
@given(st.lists(HOSTILE, min_size=8, max_size=8))
def test_texts_of_others_are_texts_of_the_page_and_nothing_else(texts: list[str]) -> None:
    page = render(build(hostile_speculator(texts), hostile_records(texts), NOW))
    check(page)
    seen = "".join(tags_of(page).texts)
    for text in texts:
        shown = "".join(character if character.isprintable() else " " for character in text)
        assert shown in seen


def hostile_speculator(texts: list[str]) -> Speculator:
    status = SpeculatorStatus(history=[HistoryEntry(time=NOW, event=texts[0], version=1, message=texts[1])])
    return speculator(status, target={"model": texts[2]})


def hostile_records(texts: list[str]) -> StoredRecords:
    found = evidence(4)
    verdict = found.verdict.model_copy(update={"reasons": (texts[3],)})
    environment = found.environment.model_copy(update={"hardware": texts[4], "engine": texts[5]})
    decision = channel(4, epoch=2).model_copy(update={"message": texts[6]})
    return StoredRecords(
        registrations=(registration(4),),
        evidence=(found.model_copy(update={"verdict": verdict, "environment": environment}),),
        channel=(channel(0), decision),
        left_out=(texts[7],),
    )


FLOATS = st.floats()
RATIOS = st.builds(
    lambda arm, numbers: RatioEstimate(
        numerator=arm,
        denominator=Arm.OFF,
        concurrency=1,
        rounds=1,
        estimate=numbers[0],
        low=numbers[1],
        high=numbers[2],
    ),
    st.sampled_from(Arm),
    st.tuples(FLOATS, FLOATS, FLOATS),
)


@settings(max_examples=example_count(60))
@given(st.lists(RATIOS, max_size=4), st.floats(min_value=1e-300, max_value=1e300), st.integers(0, 1 << 62))
def test_any_figures_make_a_page(ratios: list[RatioEstimate], seconds: float, count: int) -> None:
    found = evidence(4)
    samples = tuple(one.model_copy(update={"seconds": seconds}) for one in found.samples)
    verdict = found.verdict.model_copy(update={"ratios": tuple(ratios)})
    shapes = (ShapeCounts(source="lookup", steps=count % 9, rounds=count, accepted=count),)
    counted = {"answer_tokens": count, "proposed": count, "rounds": count, "shapes": shapes}
    shard = next(report_example.shards()).model_copy(update=counted)
    length = registration(4).model_copy(update={"held_out_acceptance_length": seconds, "created": shard.created})
    changed = found.model_copy(update={"samples": samples, "verdict": verdict})
    page = render(build(example(), StoredRecords((length,), {}, (changed,), (channel(0),), (shard,)), NOW))
    check(page)
    assert not re.search(r'="[^"]*\b(nan|inf)\b', page)


# Reading --------------------------------------------------------------------------------------------------------------


@pytest.fixture(name="objects")
def _objects(tmp_path: Path) -> FolderObjects:
    objects = FolderObjects(tmp_path / "store")
    put(objects, RECORDS)
    return objects


def test_the_stored_records_are_read_as_they_were_written(objects: FolderObjects) -> None:
    found = read_records(objects)
    assert found == RECORDS


def test_a_damaged_or_foreign_record_is_named_and_hides_no_other(objects: FolderObjects) -> None:
    objects.put(Keys.registration(3), b'{"version": "a secret"}')
    objects.put(Keys.evidence(4, 1), evidence(5).to_json())
    objects.put(f"{Keys.EVIDENCE}notes.txt", b"")
    found = read_records(objects)
    assert [one.version for one in found.registrations] == [0, 1, 2, *range(4, report_example.VERSIONS)]
    assert 4 not in {one.version for one in found.evidence}
    assert [text.split(" ")[0] for text in found.left_out] == [Keys.registration(3), Keys.evidence(4, 1)]
    assert "a secret" not in str(found.left_out)


@pytest.mark.parametrize("error", [ObjectArchived("InvalidObjectState"), KeyUnusable("KMS.DisabledException")])
def test_a_record_that_the_store_alone_refuses_is_named_and_hides_no_other(
    objects: FolderObjects, error: StoreError
) -> None:
    objects.refused[Keys.registration(3)] = error
    found = read_records(objects)
    assert [one.version for one in found.registrations] == [0, 1, 2, *range(4, report_example.VERSIONS)]
    assert found.left_out == (f"{Keys.registration(3)} was left out: {error}.",)


def test_an_attempt_under_the_key_of_another_attempt_is_named_and_left_out(objects: FolderObjects) -> None:
    objects.put(Keys.evidence(report_example.UNDECIDED, 1), RECORDS.evidence[6].to_json())
    found = read_records(objects)
    assert found.evidence == RECORDS.evidence
    assert found.earlier_evidence == ()
    assert [text.split(" ")[0] for text in found.left_out] == [Keys.evidence(report_example.UNDECIDED, 1)]


def test_of_many_attempts_the_newest_are_read_and_that_is_said(objects: FolderObjects) -> None:
    for attempt in range(2, MAX_EARLIER_ATTEMPTS + 2):
        record = evidence(10, attempt=attempt)
        objects.put(Keys.evidence(10, attempt), record.to_json())
    found = read_records(objects)
    assert len(found.earlier_evidence) == MAX_EARLIER_ATTEMPTS
    assert {one.version for one in found.earlier_evidence} == {10}, "the attempt at version 7 is the oldest"
    assert f"newest {MAX_EARLIER_ATTEMPTS} of {MAX_EARLIER_ATTEMPTS + 1} earlier attempts" in "".join(found.left_out)


def test_a_large_store_is_read_in_part_and_that_is_said(objects: FolderObjects) -> None:
    for version in range(report_example.VERSIONS, MAX_VERSIONS + 5):
        objects.put(Keys.registration(version), registration(version).to_json())
    shard = next(report_example.shards())
    for number in range(1000, 1000 + MAX_SHARDS):
        key = Keys.shard(1, "chat-b", "b2", number, shard.created)
        objects.put(f"{key}.json", shard.model_copy(update={"seq": number, "pod": "chat-b"}).to_json())
    found = read_records(objects)
    assert (len(found.registrations), len(found.shards)) == (MAX_VERSIONS, MAX_SHARDS)
    assert found.registrations[-1].version == MAX_VERSIONS + 4
    assert f"The report read the newest {MAX_VERSIONS} of {MAX_VERSIONS + 5} versions." in found.left_out
