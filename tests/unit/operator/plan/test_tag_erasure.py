"""An erasure is asked for by a tag's hash: a trainer runs for it, and status and Event tell what it did."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from aurora_operator.observe.observed import Observed, StoreView
from aurora_protocol.erasure_records import ErasureReport
from aurora_protocol.training_records import TrainerPhase, TrainerStatus
from tests.unit.operator.plan.test_rest import NO_PODS, trainer_replicas
from tests.unit.operator.worlds import NOW, made, observed, spec, status, store

TAG = "0123456789abcdef"


def report(number: int = 1, **more: Any) -> ErasureReport:
    counts: dict[str, Any] = {
        "shards_rewritten": 3,
        "traces_removed": 5,
        "shards_scanned": 120,
        "remaining_traces": 0,
        "versions": (),
    }
    return ErasureReport(tag=TAG, number=number, started=NOW, completed=NOW, **(counts | more))


def world(*reports: ErasureReport, at_rest: bool = False, tags: tuple[str, ...] = (TAG,)) -> Observed:
    record = TrainerStatus(
        phase=TrainerPhase.SUSPENDED, step=1, shards=1, trained_tokens=1, erasures=reports, updated=NOW
    )
    training = {"eraseTags": list(tags), "suspended": at_rest}
    given = spec(serving={"replicas": 0 if at_rest else 2}, training=training)
    return observed(**({"spec": given, "store": store(0, trainer=record)} | (NO_PODS if at_rest else {})))


def test_a_trainer_at_rest_runs_until_the_tag_is_erased() -> None:
    assert trainer_replicas(world(at_rest=True)) == 1
    done = world(report(), at_rest=True)
    assert trainer_replicas(done) == 0
    away = replace(done, status=status(done), store=StoreView(reason="Unreachable", error="no route"))
    assert trainer_replicas(away) == 0, "the status knows it while the store is away"
    assert trainer_replicas(world(report(), at_rest=True, tags=(TAG, TAG[::-1].replace("f", "1", 1)))) == 1


def test_the_trainer_gets_the_hashes_and_the_engines_are_not_restarted() -> None:
    def environment(seen: Observed, name: str) -> str:
        (child,) = (c for c in made(seen).children if c["kind"] == "Deployment" and c["metadata"]["name"] == name)
        return str(child["spec"]["template"])

    with_tag, without = world(), world(tags=())
    assert TAG in environment(with_tag, "chat-trainer")
    assert environment(with_tag, "chat") == environment(without, "chat")


def test_the_status_names_the_report_and_one_event_tells_it() -> None:
    other = "1" * 16
    reports = (report(versions=tuple(range(4, 40))), report(2).model_copy(update={"tag": other}))
    seen = world(*reports, tags=(TAG, other))
    first, second = status(seen).training.erasures
    assert (first.tag, first.number, first.traces_removed, first.shards_rewritten) == (TAG, 1, 5, 3)
    assert (first.shards_scanned, first.remaining_traces, first.versions) == (120, 0, list(range(20, 40)))
    assert (second.tag, second.number) == (other, 2)
    notes = [note for note in made(seen).notes if note.reason == "TagErased"]
    assert [note.warning for note in notes] == [False, False]
    assert notes[1].message == (
        f"Erased the tag {other}: removed 5 traces from 3 shards; 0 remain in 120 scanned shards"
    )
    assert notes[0].message.startswith(f"Erased the tag {TAG}: removed 5 traces from 3 shards; 0 remain")
    assert "versions 20, 21" in notes[0].message
    assert notes[0].message.endswith("38, 39 and later ones may have learned from them")
    told = replace(seen, status=status(seen))
    assert [note for note in made(told).notes if note.reason == "TagErased"] == []
    again = replace(world(report(2)), status=status(seen))
    assert [note.reason for note in made(again).notes if note.reason == "TagErased"] == ["TagErased"]


def test_reports_about_other_tags_and_earlier_reports_are_left_out() -> None:
    foreign = [report().model_copy(update={"tag": f"{number:016x}"}) for number in range(1, 1001)]
    earlier = [report(number) for number in range(1, 1000)]
    seen = world(*foreign)
    assert status(seen).training.erasures == []
    assert [note for note in made(seen).notes if note.reason == "TagErased"] == []
    assert trainer_replicas(replace(seen, **NO_PODS)) == 1, "the listed tag still waits"
    (last,) = status(world(*earlier, *foreign)).training.erasures
    assert (last.tag, last.number) == (TAG, 999)


def test_traces_that_remain_are_a_warning() -> None:
    (note,) = (note for note in made(world(report(remaining_traces=7))).notes if note.reason == "TagErased")
    assert note.warning
    assert "7 remain" in note.message


@pytest.mark.parametrize("tag", ["tenant-7", "0123456789ABCDEF", "f" * 16, "0" * 15, "0" * 16])
def test_what_is_no_hash_is_refused_so_that_no_plain_tag_is_kept_by_mistake(tag: str) -> None:
    with pytest.raises(ValueError, match="eraseTags"):
        spec(training={"eraseTags": [tag]})
