"""Shapes and sources over time: shares add up, gaps stay gaps, and older or contradicting manifests claim nothing."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aurora_cli.report.builder import build
from aurora_cli.report.charts.traffic_charts import series_looks
from aurora_cli.report.page.document import render
from aurora_cli.report.report import ShapeKind, Traffic
from aurora_cli.report.shapes import MAX_DRAFT_SERIES, shape_series
from aurora_cli.report.traffic import MAX_BINS, traffic
from aurora_protocol.draft_records import FileRef
from aurora_protocol.training_records import ShapeCounts, ShardManifest
from tests.example_count import example_count
from tests.unit.cli.report_example import END, START, example, records, shards

COUNTS = st.builds(
    ShapeCounts,
    source=st.sampled_from(["none", "lookup", "draft"]),
    steps=st.integers(0, 20),
    rounds=st.integers(0, 1000),
    accepted=st.integers(0, 3000),
)


def shard(
    hours: float, *counts: ShapeCounts, answers: int = 100, accepted: int = 0, rounds: int | None = None
) -> ShardManifest:
    """A shard with these counts by shape. Without any, the manifest is one of an older version."""
    return ShardManifest(
        lineage=1,
        pod="p",
        boot="b",
        seq=0,
        file=FileRef(name="s.safetensors", sha256="0" * 64, size=1),
        requests=1,
        tokens=answers,
        answer_tokens=answers,
        rounds=sum(one.rounds for one in counts) if rounds is None else rounds,
        proposed=0,
        accepted=accepted,
        dropped_records=0,
        draft_versions=(0,),
        shapes=counts or None,
        created=START + timedelta(hours=hours),
    )


def of(source: str, steps: int, rounds: int, accepted: int = 0) -> ShapeCounts:
    return ShapeCounts(source=source, steps=steps, rounds=rounds, accepted=accepted)


def shares(found: Traffic) -> dict[str, float]:
    """The shares of the only stretch by the name of their series."""
    (only,) = found.bins
    return dict(zip((one.name for one in found.series), only.shapes, strict=True))


@settings(max_examples=example_count(80), deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 9999),
            st.lists(COUNTS, max_size=5),
            st.integers(0, 9000),
            st.integers(0, 9000),
            st.booleans(),
        ),
        max_size=40,
    )
)
def test_shares_add_up_and_stretches_are_in_order(
    written: list[tuple[int, list[ShapeCounts], int, int, bool]],
) -> None:
    found = traffic(
        sorted(
            (
                shard(minutes / 60, *counts, answers=answers, accepted=accepted, rounds=7 if wrong else None)
                for minutes, counts, answers, accepted, wrong in written
            ),
            key=lambda one: one.created,
        )
    )
    assert len(found.bins) <= MAX_BINS
    assert [one.start for one in found.bins] == sorted({one.start for one in found.bins})
    for one in found.bins:
        sources = (one.from_draft, one.from_lookup, one.from_target, one.rest)
        assert min(sources) >= 0
        assert sum(sources) == pytest.approx(1)
        assert len(one.shapes) in (0, len(found.series))
        assert not one.shapes or sum(one.shapes) == pytest.approx(1)
    assert found.without_shapes <= found.shards
    assert bool(found.series) is any(one.shapes for one in found.bins)


def test_lookup_and_the_target_are_told_apart_where_the_manifest_says_it() -> None:
    counts = (of("none", 0, 10), of("lookup", 5, 20, 30), of("draft", 3, 10, 15))
    (known,) = traffic([shard(0, *counts, accepted=15)]).bins
    assert (known.from_draft, known.from_lookup, known.from_target, known.rest) == (0.15, 0.30, 0.55, 0)
    (older,) = traffic([shard(0, accepted=15, rounds=40)]).bins
    assert (older.from_draft, older.from_lookup, older.from_target, older.rest) == (0.15, 0, 0.40, 0.45)


def test_shapes_have_the_names_of_the_metrics_and_rounds_without_a_proposal_are_not_off() -> None:
    counts = (of("none", 0, 10), of("none", 3, 5), of("lookup", 3, 20), of("lookup", 7, 5), of("draft", 3, 60))
    found = traffic([shard(0, *counts)])
    assert shares(found) == {"draft-3": 0.60, "lookup": 0.25, "no proposal": 0.05, "off": 0.10}


def test_a_pod_with_a_wrong_clock_does_not_stretch_the_time() -> None:
    counts = [of("draft", 3, 10)]
    found = traffic([shard(-40_000, *counts), *(shard(hour, *counts) for hour in range(150))])
    assert len(found.bins) == MAX_BINS
    assert found.bins[0].start > START - timedelta(hours=1)
    assert found.shards == 151


@pytest.mark.parametrize("lengths", range(1, MAX_DRAFT_SERIES + 3))
def test_each_series_of_the_draft_has_a_shade_of_its_own(lengths: int) -> None:
    counts = [of("draft", steps, 100 - steps) for steps in range(1, lengths + 1)]
    looks = series_looks(shape_series([shard(0, *counts)]))
    assert len(set(looks)) == len(looks) == min(lengths, MAX_DRAFT_SERIES)


def test_the_rarest_lengths_of_the_draft_share_a_series() -> None:
    counts = [of("draft", steps, 100 - steps) for steps in range(1, MAX_DRAFT_SERIES + 2)]
    found = shape_series([shard(0, *counts)])
    assert [one.name for one in found] == ["draft-6", "draft-5", "draft-4", "draft-3", "draft-2", "draft-1",
                                           "draft, other lengths"]  # fmt: skip
    assert found[-1].steps == (7, 8)
    assert {one.kind for one in found} == {ShapeKind.DRAFT}


@pytest.mark.parametrize(
    "contradicting",
    [shard(0, rounds=10), shard(0, of("draft", 3, 9), rounds=10), shard(0, of("oracle", 3, 10))],
    ids=["older", "other rounds", "unknown source"],
)
def test_a_manifest_that_does_not_explain_its_rounds_says_nothing_about_shapes(contradicting: ShardManifest) -> None:
    found = traffic([shard(0, of("draft", 3, 10)), contradicting])
    assert (found.shards, found.without_shapes) == (2, 1)
    assert shares(found) == {"draft-3": 1}
    alone = traffic([contradicting])
    assert (alone.bins[0].shapes, alone.series) == ((), ())


def test_a_time_without_shards_stays_empty() -> None:
    off = of("none", 0, 10)
    found = traffic([shard(hours, off) for hours in (0, 1, 2, 3, 20, 21, 22, 24)])
    ends = [((one.start - START) / timedelta(hours=1), (one.end - START) / timedelta(hours=1)) for one in found.bins]
    assert ends == [(0, 6), (18, 24)]


def test_shards_of_one_moment_are_one_stretch() -> None:
    found = traffic([shard(5, of("none", 0, 10)) for _ in range(9)])
    assert [(one.start, one.end) for one in found.bins] == [(START + timedelta(hours=5),) * 2]
    assert traffic([]) == Traffic()


@pytest.mark.parametrize("first", [datetime.min.replace(tzinfo=UTC), START])
def test_the_whole_calendar_makes_an_axis(first: datetime) -> None:
    last = datetime.max.replace(tzinfo=UTC)
    found = traffic([shard(0, of("none", 0, 1)).model_copy(update={"created": time}) for time in (first, *[last] * 9)])
    assert (found.bins[0].start, found.bins[-1].end) == (first, last)
    render(replace(build(example(), records(), END), traffic=found))


# The page -------------------------------------------------------------------------------------------------------------


def section_of(page: str) -> str:
    section = page[page.index('id="shapes"') :]
    return section[: section.index("</section>")]


def test_the_section_has_a_chart_a_description_and_a_row_for_each_stretch() -> None:
    report = build(example(), records(), END)
    section = section_of(render(report))
    rows = [one for one in report.traffic.bins if one.shapes]
    assert len(rows) < len(report.traffic.bins) < MAX_BINS, "the example has older shards, and hours without any"
    assert section.count("<tr>") == len(rows) + 1
    assert 'aria-label="Shapes of verify rounds over time; last: draft-5' in section
    assert re.findall(r"<th[^>]*>(.*?)</th>", section)[2:] == [
        *("draft-5", "draft-3", "draft-2", "draft-1", "lookup", "no proposal", "off"),
    ]


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ([], "No shard with rounds was read."),
        ([one.model_copy(update={"shapes": None}) for one in shards()], "No shard that was read says which shapes"),
    ],
    ids=["no shard", "older shards"],
)
def test_a_section_without_figures_says_why(found: list[ShardManifest], words: str) -> None:
    section = section_of(render(build(example(), replace(records(), shards=tuple(found)), END)))
    assert words in section
    assert "<svg" not in section
