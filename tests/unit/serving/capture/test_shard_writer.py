"""The writer writes complete shards on time, drops the oldest first, and counts every loss."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

from aurora_protocol.agent_api import TraceBudget
from aurora_protocol.pod_settings import StateType
from aurora_protocol.training_records import ShardManifest
from aurora_runtime.serving.capture import shard_writer
from aurora_runtime.serving.capture.settings import PROBE_PREFIX, CaptureSettings
from aurora_runtime.serving.capture.shard_writer import Batch, ShardWriter
from aurora_runtime.serving.capture.trace_assembler import PromptChunk, VerifyRound
from aurora_runtime.serving.pod_files import CaptureState, PodFolder, write_atomically
from aurora_runtime.traces import ProposalSource, decode, state_type_of
from aurora_store import Keys
from aurora_store.objects import sha256_file
from tests.unit.serving.capture.test_trace_assembler import TOP_TOKENS, drafted_request, long_request


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make(path: Path, clock: Clock, **options: object) -> ShardWriter:
    values = {
        "lineage": 1,
        "pod": "pod-0",
        "boot": "0b",
        "top_tokens": TOP_TOKENS,
        "shard_seconds": 10,
        "shard_tokens": 50,
    }
    writer = ShardWriter(CaptureSettings.model_validate(values | {"state_folder": str(path)} | options), clock=clock)
    (path / "spool").mkdir()
    return writer


def offer(writer: ShardWriter, events: list[PromptChunk | VerifyRound], nbytes: int = 0) -> None:
    writer.offer(Batch(lambda: events, len(events), nbytes))


def write_one_shard(writer: ShardWriter, clock: Clock) -> None:
    """One request, then the time of a shard."""
    offer(writer, long_request("r", prompt=3, answer=4))
    writer.step()
    clock.now += 11
    writer._queue.put(Batch(list, 0, 0))  # an empty batch instead of the wait
    writer.step()


def shards(path: Path) -> list[Path]:
    return sorted((path / "spool").glob("*.safetensors"))


def test_a_shard_is_written_when_it_is_due_with_a_manifest_of_its_content(tmp_path: Path) -> None:
    clock = Clock()
    writer = make(tmp_path, clock)
    offer(writer, long_request("r", prompt=3, answer=4))
    writer.step()
    assert shards(tmp_path) == [], "neither old nor full"
    clock.now += 11
    offer(writer, [])
    writer.step()
    (data,) = shards(tmp_path)
    manifest = ShardManifest.from_json(data.with_suffix(".json").read_bytes())
    assert manifest.file.name == data.name
    assert manifest.file.sha256 == sha256_file(data)
    assert manifest.file.size == data.stat().st_size
    (trace,) = decode(data.read_bytes())
    assert trace.tokens.tolist() == [*range(7)]
    assert (manifest.requests, manifest.tokens, manifest.answer_tokens, manifest.rounds) == (1, 6, 4, 3)
    assert (manifest.proposed, manifest.accepted) == (0, 0)
    stem = Keys.shard(1, "pod-0", "0b", 0, manifest.created)
    assert stem.rsplit("/", 1)[1] == data.stem, "the file is named as its object will be"


def test_a_shard_may_hold_its_states_in_8_bits(tmp_path: Path) -> None:
    clock = Clock()
    writer = make(tmp_path, clock, state_type=StateType.FLOAT8)
    write_one_shard(writer, clock)
    (data,) = shards(tmp_path)
    assert state_type_of(data.read_bytes()) is StateType.FLOAT8
    (trace,) = decode(data.read_bytes())
    assert trace.hidden.shape[0] == ShardManifest.from_json(data.with_suffix(".json").read_bytes()).tokens


def test_a_manifest_counts_the_tokens_of_the_draft_only(tmp_path: Path) -> None:
    writer = make(tmp_path, Clock())
    for rid, source in (("a", ProposalSource.DRAFT), ("b", ProposalSource.LOOKUP), ("c", ProposalSource.NONE)):
        offer(writer, drafted_request(rid, source))
        writer.step()
    writer.flush()
    (data,) = shards(tmp_path)
    manifest = ShardManifest.from_json(data.with_suffix(".json").read_bytes())
    assert (manifest.requests, manifest.rounds, manifest.proposed, manifest.accepted) == (3, 3, 2, 1)


def test_the_budget_of_the_last_order_is_kept(tmp_path: Path) -> None:
    clock = Clock()
    writer = make(tmp_path, clock, tokens_per_minute=0)
    assert writer.allowance.share == 0
    write_atomically(PodFolder(tmp_path).trace_budget, TraceBudget(tokens_per_minute=1).to_json())
    writer.step()  # the heartbeat looks for the file
    assert writer.allowance.share == 1
    offer(writer, long_request("r", prompt=30, answer=4))
    writer.step()
    assert writer.allowance.share == 0, "more than the ten tokens of ten minutes are traced"
    clock.now += 3600
    writer.step()
    assert writer.allowance.share > 0


def test_a_full_shard_is_written_at_once(tmp_path: Path) -> None:
    writer = make(tmp_path, Clock(), shard_tokens=12)
    for rid in "ab":
        assert shards(tmp_path) == []
        offer(writer, long_request(rid, prompt=3, answer=4))
        writer.step()
    assert len(shards(tmp_path)) == 1


def test_a_full_spool_keeps_the_newest_shards(tmp_path: Path) -> None:
    clock = Clock()
    writer = make(tmp_path, clock)
    write_one_shard(writer, clock)
    limit = 3 * shards(tmp_path)[0].stat().st_size
    writer.settings = writer.settings.model_copy(update={"max_spool_bytes": limit})
    for _ in range(4):
        write_one_shard(writer, clock)
    assert [path.stem[-1] for path in shards(tmp_path)] == ["2", "3", "4"]
    assert len(list((tmp_path / "spool").iterdir())) == 6
    assert writer.state().shards_dropped == 2
    assert writer.state().losses == {"spool": 2}


def test_the_newest_shard_stays_whatever_its_size(tmp_path: Path) -> None:
    clock = Clock()
    writer = make(tmp_path, clock, max_spool_bytes=1)
    for _ in range(3):
        write_one_shard(writer, clock)
    assert [path.stem[-1] for path in shards(tmp_path)] == ["2"]


@pytest.mark.parametrize("first", [True, False])
def test_a_shard_that_the_agent_deletes_meanwhile_is_no_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    """The agent deletes the oldest shard just before, or just after, the writer looks at it."""
    clock = Clock()
    writer = make(tmp_path, clock)
    for _ in range(2):
        write_one_shard(writer, clock)
    limit = 2 * shards(tmp_path)[0].stat().st_size
    writer.settings = writer.settings.model_copy(update={"max_spool_bytes": limit})
    oldest, stat = shards(tmp_path)[0], Path.stat

    def look(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        if path == oldest and first:
            path.unlink(missing_ok=True)
        found = stat(path, follow_symlinks=follow_symlinks)
        if path == oldest:
            path.unlink()
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", look)
        write_one_shard(writer, clock)
    assert (writer.state().losses, writer.state().hook_errors) == ({}, 0)
    assert [path.stem[-1] for path in shards(tmp_path)] == ["1", "2"]


def test_batches_that_wait_are_bounded_by_their_memory(tmp_path: Path) -> None:
    writer = make(tmp_path, Clock(), max_queued_bytes=100)
    events = long_request("r", prompt=3, answer=4)
    offer(writer, events, nbytes=1000)  # larger than the bound: an empty queue takes it
    offer(writer, events, nbytes=1)
    assert writer.state().dropped_records == 4
    writer.step()
    offer(writer, events, nbytes=60)
    offer(writer, events, nbytes=60)
    assert writer.state().dropped_records == 8, "the batch that was taken no longer counts"


@pytest.mark.parametrize(
    ("function", "error"),
    [
        ("save_file", SafetensorError("No space left on device")),
        ("write_atomically", OSError(errno.ENOSPC, "No space left on device")),
    ],
)
def test_a_shard_that_the_disk_does_not_take_is_counted_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, error: Exception
) -> None:
    """The disk fills up in the data or in the manifest. The losses before it are in the next manifest, once."""

    def full(*arguments: object) -> None:
        (path,) = (argument for argument in arguments if isinstance(argument, Path))
        path.write_bytes(b"half")
        raise error

    clock = Clock()
    writer = make(tmp_path, clock, max_queued_bytes=1)
    offer(writer, long_request("a", prompt=3, answer=4), nbytes=1)
    offer(writer, long_request("b", prompt=3, answer=4), nbytes=1)
    writer.step()
    with monkeypatch.context() as disk:
        disk.setattr(shard_writer, function, full)
        writer.flush()
        writer.heartbeat()
    assert [path.suffix for path in (tmp_path / "spool").iterdir() if path.suffix != ".json"] == []
    assert writer.state().losses == {"queue": 4, "spool": 1}
    for _ in range(2):
        write_one_shard(writer, clock)
    manifests = [ShardManifest.from_json(path.with_suffix(".json").read_bytes()) for path in shards(tmp_path)]
    assert [manifest.dropped_records for manifest in manifests] == [4, 0]


def test_the_probe_is_counted_and_not_written(tmp_path: Path) -> None:
    writer = make(tmp_path, Clock())
    offer(writer, long_request(PROBE_PREFIX + "1", prompt=3, answer=4))
    writer.step()
    writer.flush()
    assert shards(tmp_path) == []
    assert (writer.state().probe_records, writer.state().captured_records) == (3, 0)


def test_errors_of_hooks_are_counted_and_the_first_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    writer = make(tmp_path, Clock())
    for _ in range(3):
        writer.count_hook_error()
    assert writer.state().hook_errors == 3
    assert caplog.text.count("a batch was not captured") == 1


def test_a_prompt_that_is_too_long_is_a_loss(tmp_path: Path) -> None:
    writer = make(tmp_path, Clock())
    writer.count_long_prompt()
    assert (writer.state().losses, writer.state().dropped_records) == ({"long_prompt": 1}, 1)


def test_incomplete_shards_of_a_dead_engine_are_removed(tmp_path: Path) -> None:
    clock = Clock()
    writer = make(tmp_path, clock)
    write_one_shard(writer, clock)
    spool = tmp_path / "spool"
    (spool / "pod-0-0a-00000000.safetensors.tmp").write_bytes(b"half")
    (spool / "pod-0-0a-00000001.safetensors").write_bytes(b"no manifest")
    writer.remove_incomplete_shards()
    assert sorted(path.suffix for path in spool.iterdir()) == [".json", ".safetensors"]


def test_a_batch_that_fails_is_counted_and_the_thread_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    writer = make(tmp_path, Clock())

    def broken() -> list[PromptChunk | VerifyRound]:
        raise ValueError("broken batch")

    writer.offer(Batch(broken, 1, 0))
    offer(writer, long_request("r", prompt=3, answer=4))
    writer.start()
    writer.stop()
    assert len(shards(tmp_path)) == 1
    state = CaptureState.from_json((tmp_path / "capture.json").read_bytes())
    assert (state.ok, state.hook_errors) == (True, 1)
