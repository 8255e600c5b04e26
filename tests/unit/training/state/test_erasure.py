"""One tag is erased: its traces are gone from every shard, the others' stay, whenever a kill comes."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch

from aurora_protocol.draft_records import Registration
from aurora_protocol.erasure_records import ErasureReport
from aurora_protocol.errors import NewerRecord
from aurora_protocol.pod_settings import StateType
from aurora_protocol.training_records import ErasureStep
from aurora_runtime.errors import Interrupted, NewerTraceFormat
from aurora_runtime.request_privacy import tag_hash
from aurora_runtime.traces import RequestTrace, decode, state_type_of
from aurora_runtime.training.lineage import utc_now
from aurora_runtime.training.retry import Retrier
from aurora_runtime.training.state import erasure
from aurora_runtime.training.state.erasure import erase_tags
from aurora_store import Keys, Registry
from tests.unit.training import tiny
from tests.unit.training.trainer_rig import Traffic, TrainerRig

TAG, OTHER = 5, 6
HASH = tag_hash(TAG)


def tagged(seed: int, tag: int = TAG) -> RequestTrace:
    return replace(tiny.trace(seed), tag=tag)


def not_held_out() -> int:
    return next(seed for seed in range(100) if not tiny.trace(seed).held_out)


def erase(registry: Registry, lineage: int = 1, tag: str = HASH, retrier: Retrier | None = None) -> ErasureReport:
    (report,) = erase_tags(registry, lineage, [tag], retrier or Retrier(), lambda message: None)
    return report


def stored(registry: Registry, lineage: int = 1) -> dict[str, list[tuple[int, int]]]:
    """Prompt's hash and tag of each trace in each shard. Every shard is undamaged."""
    return {
        key: [(trace.request, trace.tag) for trace in decode(registry.shard(key)[1])]
        for key in registry.shard_keys(lineage)
    }


def mixed_store(registry: Registry) -> None:
    """A shard without the tag, one with some of it, and one with nothing else."""
    tiny.put_shard(registry, 0, [tiny.trace(0), tagged(1, OTHER)])
    tiny.put_shard(registry, 1, [tagged(2), tiny.trace(3), tagged(4), tagged(5, OTHER)])
    tiny.put_shard(registry, 2, [tagged(6), tagged(7)])


def test_the_tags_traces_go_and_all_others_stay_under_the_same_keys() -> None:
    registry, objects = tiny.memory_registry()
    mixed_store(registry)
    before, untouched = stored(registry), dict(objects.data)
    report = erase(registry)
    after = stored(registry)
    assert after == {key: [each for each in traces if each[1] != TAG] for key, traces in before.items()}
    for key in (key for key in untouched if "-00000000." in key):
        assert objects.data[key] == untouched[key], "a shard without the tag is not touched"
    assert (report.number, report.traces_removed, report.shards_rewritten, report.shards_unreadable) == (1, 4, 2, 0)
    assert (report.shards_scanned, report.remaining_traces, report.versions) == (3, 0, ())
    manifests = [registry.shard_manifest(key) for key in after]
    assert [manifest.requests for manifest in manifests] == [2, 2, 0]
    by_shape = [sum(shape.rounds for shape in one.shapes or ()) for one in manifests[1:]]
    assert by_shape == [one.rounds for one in manifests[1:]], "the counts by shape are those of the traces that stay"
    assert registry.last_erasure_report(HASH) == report
    assert registry.erasure_step(HASH) is None


@pytest.mark.parametrize("state_type", StateType)
def test_the_traces_that_stay_keep_their_bytes(state_type: StateType) -> None:
    registry, _ = tiny.memory_registry()
    key = tiny.put_shard(registry, 0, [tagged(2), tiny.trace(3)], state_type)
    (_, before) = decode(registry.shard(key)[1])
    erase(registry)
    data = registry.shard(key)[1]
    (after,) = decode(data)
    assert torch.equal(after.hidden, before.hidden)
    assert state_type_of(data) is state_type


def test_an_erasure_is_done_once_and_a_later_start_erases_what_came_since() -> None:
    registry, objects = tiny.memory_registry()
    mixed_store(registry)
    first = erase(registry)
    unchanged = dict(objects.data)
    assert erase(registry) == first
    assert objects.data == unchanged
    tiny.put_shard(registry, 3, [tagged(8), tiny.trace(9)])
    second = erase(registry)
    assert (second.number, second.traces_removed, second.shards_rewritten, second.remaining_traces) == (2, 1, 1, 0)
    assert erase(registry) == second
    other = erase(registry, tag=tag_hash(OTHER))
    assert (other.number, other.traces_removed) == (1, 2), "another tag has its own report"


def test_an_agent_that_tries_again_after_the_erasure_brings_nothing_back(tmp_path: Path) -> None:
    """An agent that never got the store's answer uploads the shard again, after it was rewritten."""
    registry, objects = tiny.memory_registry()
    mixed_store(registry)
    key = next(key for key in registry.shard_keys(1) if "-00000001." in key)
    manifest, raw = registry.shard(key)
    (tmp_path / "spooled").write_bytes(raw)
    erase(registry)
    rewritten = dict(objects.data)
    assert registry.put_shard(manifest, tmp_path / "spooled") == key
    assert objects.data == rewritten


def test_former_data_that_somebody_puts_back_are_found_by_the_next_start() -> None:
    registry, objects = tiny.memory_registry()
    mixed_store(registry)
    key = next(key for key in registry.shard_keys(1) if "-00000001." in key)
    data = key.replace(".json", ".safetensors")
    former = objects.data[data]
    first = erase(registry)
    for written in objects.written:
        objects.written[written] -= timedelta(days=1)
    late = first.model_copy(update={"completed": first.completed + erasure.CLOCK_SLACK / 2})
    objects.put(Keys.erasure(HASH, 1), late.to_json())
    assert erase(registry) == late
    objects.put(data, former)
    second = erase(registry)
    assert (second.number, second.shards_unreadable, second.remaining_traces) == (2, 1, 0)
    assert stored(registry)[key] == [], "its manifest is that of the rewritten data, so nobody could read it"


def test_a_kill_at_any_write_loses_no_other_trace_and_the_next_start_finishes_with_the_right_counts() -> None:
    def run(kill: int | None) -> int:
        registry, objects = tiny.memory_registry()
        mixed_store(registry)
        expected = {key: [each for each in traces if each[1] != TAG] for key, traces in stored(registry).items()}
        writes = 0
        real = objects._fail

        def count() -> None:
            nonlocal writes
            writes += 1
            real()

        objects._fail = count  # type: ignore[method-assign]
        objects.fail_at = kill
        try:
            erase(registry)
        except KeyboardInterrupt:
            objects.fail_at = None
            for key in registry.shard_keys(1):
                registry.shard(key)  # no manifest names other data than its own
        report = erase(registry)
        assert stored(registry) == expected
        assert (report.number, report.traces_removed, report.shards_rewritten, report.remaining_traces) == (1, 4, 2, 0)
        assert [key for key in objects.data if key.startswith(Keys.ERASING)] == []
        return writes

    writes = run(None)
    assert writes == 10, "the step and three writes for each of two shards, the report, and the end of the step"
    for kill in range(writes):
        run(kill)


def test_a_stop_ends_an_erasure_that_the_next_start_finishes() -> None:
    registry, _ = tiny.memory_registry()
    mixed_store(registry)
    retrier = Retrier()
    retrier.stop()
    with pytest.raises(Interrupted, match="the next start goes on"):
        erase(registry, retrier=retrier)
    assert erase(registry).traces_removed == 4


def test_a_shard_that_nobody_can_read_is_emptied_and_counted() -> None:
    registry, objects = tiny.memory_registry()
    mixed_store(registry)
    keys = list(registry.shard_keys(1))
    objects.data[keys[0].replace(".json", ".safetensors")] = b"x" * 100
    data = keys[1].replace(".json", ".safetensors")
    objects.data[data] = objects.data[data][:-1] + b"?"  # a readable head with the tag, and another digest
    report = erase(registry)
    assert (report.shards_unreadable, report.shards_rewritten, report.traces_removed) == (2, 1, 2)
    assert stored(registry) == {key: [] for key in keys}
    objects.data[keys[2]] = b"no manifest"
    objects.data[keys[2].replace(".json", ".safetensors")] = b"x"
    other = erase(registry, tag=tag_hash(OTHER))
    assert list(registry.shard_keys(1)) == keys[:2]
    assert other.remaining_traces == 0


@pytest.mark.parametrize("by_manifest", [True, False])
def test_a_shard_of_a_newer_agent_is_left_to_a_newer_trainer(*, by_manifest: bool) -> None:
    registry, objects = tiny.memory_registry()
    tiny.put_newer_shard(registry, objects, 0, [tagged(1), tiny.trace(2)], by_manifest=by_manifest)
    before = dict(objects.data)
    with pytest.raises(NewerRecord if by_manifest else NewerTraceFormat):
        erase(registry)
    assert objects.data == before


@pytest.mark.parametrize("keeps_header", [False, True])
def test_a_shard_of_which_the_store_lost_the_end_stops_no_erasure(*, keeps_header: bool) -> None:
    """S3 refuses a range that begins at an object's end, or beyond it."""
    registry, objects = tiny.memory_registry()
    mixed_store(registry)
    key = tiny.put_shard(registry, 3, [tiny.trace(8)])
    data = key.replace(".json", ".safetensors")
    (header_bytes,) = struct.unpack("<Q", objects.data[data][:8])
    objects.data[data] = objects.data[data][: 8 + header_bytes if keeps_header else 0]
    report = erase(registry)
    assert (report.shards_unreadable, report.traces_removed, report.remaining_traces) == (1, 4, 0)
    assert stored(registry)[key] == []


@pytest.mark.parametrize("garbage", [b"", b"{", b"x" * (2 << 20), b'{"tag": "0", "schemaVersion": 9}'])
def test_foreign_records_stop_no_erasure(garbage: bytes) -> None:
    registry, objects = tiny.memory_registry()
    mixed_store(registry)
    objects.put(Keys.erasing(HASH), garbage)
    objects.put(Keys.erasure(HASH, 1), garbage)
    report = erase(registry)
    assert (report.number, report.traces_removed, report.remaining_traces) == (2, 4, 0)


@pytest.mark.parametrize("hours", [2, -2])
def test_a_report_from_the_future_hides_no_trace_and_is_no_proof(hours: int) -> None:
    """The trainer's clock was wrong when it wrote the report, or somebody else wrote it."""
    registry, objects = tiny.memory_registry()
    first = erase(registry)
    told = first.model_copy(update={"completed": first.completed + timedelta(hours=hours)})
    objects.put(Keys.erasure(HASH, 1), told.to_json())
    assert (erase(registry) == told) is (hours < 0)
    mixed_store(registry)
    assert (erase(registry).traces_removed, erase(registry).remaining_traces) == (4, 0)


def test_the_versions_of_a_report_from_the_future_stand_in_the_report_that_replaces_it() -> None:
    registry, objects = tiny.memory_registry()
    first = erase(registry)
    ahead = {"completed": first.completed + timedelta(hours=2), "versions": (3, 5)}
    objects.put(Keys.erasure(HASH, 1), first.model_copy(update=ahead).to_json())
    second = erase(registry)
    assert (second.number, second.versions, second.traces_removed) == (2, (3, 5), 0)
    assert erase(registry) == second


def test_the_step_of_a_report_from_the_future_is_not_counted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer was killed between the report and the end of the step, while its clock was ahead."""
    registry, objects = tiny.memory_registry()
    mixed_store(registry)
    with monkeypatch.context() as patch:
        patch.setattr(registry, "delete_erasure_step", lambda _: None)
        first = erase(registry)
    ahead = first.model_copy(update={"completed": first.completed + timedelta(hours=2)})
    objects.put(Keys.erasure(HASH, 1), ahead.to_json())
    second = erase(registry)
    assert (first.traces_removed, second.traces_removed) == (4, 0)
    assert registry.erasure_step(HASH) is None


def test_a_report_from_the_first_of_all_times_stops_no_erasure() -> None:
    registry, objects = tiny.memory_registry()
    early = erase(registry).model_copy(update={"completed": datetime.min.replace(tzinfo=UTC)})
    objects.put(Keys.erasure(HASH, 1), early.to_json())
    mixed_store(registry)
    assert erase(registry).traces_removed == 4


def test_a_step_that_names_another_object_touches_nothing_of_it() -> None:
    registry, objects = tiny.memory_registry()
    mixed_store(registry)
    erase(registry)
    step = ErasureStep(
        tag=HASH,
        started=utc_now(),
        shard="registry/00000001.json",
        replaced=hashlib.sha256(b"").hexdigest(),
        manifest=registry.shard_manifest(next(registry.shard_keys(1))),
    )
    objects.put("registry/00000001.json", b"a version")
    registry.put_erasure_step(step)
    assert erase(registry).traces_removed == 4
    assert objects.data["registry/00000001.json"] == b"a version"


@pytest.mark.parametrize("becomes_a_shard", [True, False])
def test_an_upload_under_way_is_waited_for_and_its_traces_are_erased(*, becomes_a_shard: bool) -> None:
    registry, objects = tiny.memory_registry()
    key = tiny.put_shard(registry, 0, [tagged(1), tiny.trace(2)])
    manifest, written = objects.data.pop(key), objects.written.pop(key)

    class Waiting(Retrier):
        def sleep(self, seconds: float) -> None:
            assert seconds == erasure.UPLOAD_SECONDS
            if becomes_a_shard:
                objects.data[key], objects.written[key] = manifest, written

    report = erase(registry, retrier=Waiting())
    assert report.remaining_traces == 0
    assert [len(traces) for traces in stored(registry).values()] == ([1] if becomes_a_shard else [])
    assert (key.replace(".json", ".safetensors") in objects.data) is becomes_a_shard


def test_a_client_that_goes_on_sending_the_tag_is_named_by_what_remains(monkeypatch: pytest.MonkeyPatch) -> None:
    registry, _ = tiny.memory_registry()
    seq, real = 0, registry.replace_shard

    def replace_and_receive(*arguments: object) -> None:
        nonlocal seq
        real(*arguments)  # type: ignore[arg-type]
        seq += 1
        tiny.put_shard(registry, seq, [tagged(seq)])

    tiny.put_shard(registry, 0, [tagged(0)])
    monkeypatch.setattr(registry, "replace_shard", replace_and_receive)
    report = erase(registry)
    assert (report.traces_removed, report.remaining_traces) == (erasure.MAX_SCANS, 1)


def test_versions_that_may_have_learned_from_a_removed_trace_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    registry, _ = tiny.memory_registry()
    seed = not_held_out()
    now = utc_now()
    registrations = [
        Registration(
            version=version,
            lineage=lineage,
            checkpoint=f"checkpoints/{version}/",
            digest=hashlib.sha256(b"").hexdigest(),
            trained_tokens=0,
            created=now + timedelta(hours=hours),
        )
        for version, lineage, hours in ((0, 1, 1), (1, 1, -1.5), (2, 1, -0.5), (3, 2, 1), (4, 1, 2))
    ]
    monkeypatch.setattr(registry, "registrations", lambda: iter(reversed(registrations)))
    tiny.put_shard(registry, 0, [tagged(seed)])
    assert erase(registry).versions == (2, 4), (
        "neither the untrained draft, nor an older one, nor another lineage; the pod's clock may be ahead by an hour"
    )
    held_out = next(seed for seed in range(100) if tiny.trace(seed).held_out)
    tiny.put_shard(registry, 1, [tagged(held_out, OTHER)])
    assert erase(registry, tag=tag_hash(OTHER)).versions == (), "a held-out request is never trained on"


def test_nothing_of_an_erased_tag_is_in_the_next_trainers_memory(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path)
    rig.limits = replace(rig.limits, total_bytes=1 << 40, replay_bytes=1 << 30)
    seeds = [seed for seed in range(40) if not tiny.trace(seed).held_out][:6]
    for seq in range(2):
        tiny.put_shard(rig.registry, seq, [tagged(seeds[3 * seq]), *map(tiny.trace, seeds[3 * seq + 1 : 3 * seq + 3])])
    former = rig.trainer(Traffic(rig.registry, 0))
    former.run()
    all_examples = len(former.learning.replay)
    assert all_examples >= 6
    erase(rig.registry)
    late = tiny.put_shard(rig.registry, 2, [tagged(seeds[0]), tiny.trace(seeds[1])])
    rig.settings = rig.settings.model_copy(
        update={"training": rig.settings.training.model_copy(update={"erase_tags": [HASH]})}
    )
    trainer = rig.trainer(Traffic(rig.registry, 0))
    assert len(trainer.learning.replay) == all_examples * 2 // 3
    kept = [tiny.trace(seed).tokens.tolist() for seed in (*seeds[1:3], *seeds[4:6])]
    for example in trainer.learning.replay.examples():
        text = example.tokens.tolist()
        assert any(str(text)[1:-1] in str(tokens) or str(tokens)[1:-1] in str(text) for tokens in kept)
    trainer.run()
    shard = trainer.stages.reader.read(late)
    assert shard is not None
    assert len(shard.train) == len(former.stages.reader.read(late).train) // 2  # type: ignore[union-attr]
