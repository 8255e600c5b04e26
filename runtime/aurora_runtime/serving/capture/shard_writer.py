"""The writer thread: assembles the scheduler's records into requests, and writes requests as shards into the spool.

Invariants: ``offer`` never blocks and never raises. The data of a shard is synced and renamed into place before its
manifest is written, so a manifest proves that its data is complete. The spool is bounded: the oldest shard is dropped
first, and every loss is counted. Only this thread drops shards for lack of space.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from safetensors import SafetensorError
from safetensors.torch import save_file

from aurora_protocol.draft_records import FileRef
from aurora_protocol.training_records import ShardManifest
from aurora_runtime.serving.capture.request_filter import EndedRequests, TraceAllowance
from aurora_runtime.serving.capture.settings import PROBE_PREFIX, CaptureSettings
from aurora_runtime.serving.capture.trace_assembler import PromptChunk, TraceAssembler, VerifyRound
from aurora_runtime.serving.pod_files import CaptureState, PodFolder, shard_age_key, write_atomically
from aurora_runtime.traces import RequestTrace, shard_counts, shard_tensors
from aurora_store.objects import sha256_file

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS: Final = 1.0
POLL_SECONDS: Final = 0.2


@dataclass(frozen=True)
class Batch:
    """The records of one batch, before they are split. The writer splits them: it must not cost the scheduler time."""

    split: Callable[[], list[PromptChunk | VerifyRound]]
    records: int
    nbytes: int
    """Memory that the batch holds until it is split."""


@dataclass
class _OpenShard:
    """Finished requests that wait for their shard to be written."""

    traces: list[RequestTrace] = field(default_factory=list)
    tokens: int = 0
    opened_at: float = 0.0


class ShardWriter:
    """Takes batches from the scheduler and keeps the spool. One per scheduler process."""

    def __init__(self, settings: CaptureSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings = settings
        self._folder = PodFolder(Path(settings.state_folder))
        self._clock = clock
        self._queue: queue.SimpleQueue[Batch] = queue.SimpleQueue()
        self._assembler = TraceAssembler(
            top_tokens=settings.top_tokens,
            max_tokens=settings.shard_tokens,
            max_open_bytes=settings.max_open_bytes,
            traffic_key=bytes.fromhex(settings.traffic_key),
        )
        self.allowance = TraceAllowance(settings.tokens_per_minute)
        self._allowance_at = clock()
        self._open_shard = _OpenShard()
        self.ended_requests = EndedRequests(self._folder.withdrawal.exists)
        self._seq = 0
        self._records = self._probes = self._answer_tokens = 0
        self._lost = self._lost_before = 0
        self._offered_bytes = self._taken_bytes = 0  # each is written by one thread only
        self._spool_dropped = 0
        self._hook_errors = self._long_prompts = 0
        self._next_heartbeat = 0.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    # the scheduler's side ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread. It is a daemon, because a scheduler that ends must not wait for it."""
        self._folder.spool.mkdir(parents=True, exist_ok=True)
        self._thread = threading.Thread(target=self._run, name="aurora-capture", daemon=True)
        self._thread.start()

    def offer(self, batch: Batch) -> None:
        """Queue one batch. A batch that there is no memory for is dropped, and its records counted."""
        queued = self._offered_bytes - self._taken_bytes
        if queued and queued + batch.nbytes > self.settings.max_queued_bytes:
            self._lost += batch.records
            return
        self._queue.put(batch)
        self._offered_bytes += batch.nbytes

    def count_hook_error(self) -> None:
        """Count the exception inside a hook that is handled now, which lost a batch. The log has the first one only."""
        self._hook_errors += 1
        if self._hook_errors == 1:
            log.warning("aurora capture: a batch was not captured", exc_info=True)

    def count_long_prompt(self) -> None:
        """Count a request whose prompt is too long for a trace."""
        self._long_prompts += 1

    # the thread ----------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Write finished requests and end the thread. Only tests call this: a dying engine loses its open shard."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            self.remove_incomplete_shards()
        except OSError as error:
            log.warning("aurora capture: incomplete shards were not removed: %s", error)
        while not (self._stop.is_set() and self._queue.empty()):
            try:
                self.step()
            except Exception:  # the thread's outermost loop: a bug here must not end capture silently
                self._hook_errors += 1
                log.exception("aurora capture: a batch was lost")
        self.flush()
        self.heartbeat()

    def step(self) -> None:
        """Process at most one batch. Then write the shard and the heartbeat if either is due."""
        try:
            batch = self._queue.get(timeout=POLL_SECONDS)
        except queue.Empty:
            pass
        else:
            self._taken_bytes += batch.nbytes
            self._process(batch.split())
        now = self._clock()
        shard = self._open_shard
        full = shard.tokens >= self.settings.shard_tokens
        if shard.traces and (full or now - shard.opened_at >= self.settings.shard_seconds):
            self.flush()
        if now >= self._next_heartbeat:
            self._next_heartbeat = now + HEARTBEAT_SECONDS
            self._refill_allowance(now)
            self.heartbeat()

    def _process(self, events: list[PromptChunk | VerifyRound]) -> None:
        for event in events:
            if event.rid.startswith(PROBE_PREFIX):
                self._probes += isinstance(event, VerifyRound)
                continue
            self._records += 1
            self.allowance.spend(event.hidden.shape[0])
            trace = self._assembler.add(event)
            if trace is not None:
                self._add(trace)

    def _refill_allowance(self, now: float) -> None:
        """Follow the agent's last order, if there is one."""
        order = self._folder.read_trace_budget()
        if order is not None:
            self.allowance.order(order.tokens_per_minute)
        self.allowance.pass_time(now - self._allowance_at)
        self._allowance_at = now

    def _add(self, trace: RequestTrace) -> None:
        shard = self._open_shard
        if not shard.traces:
            shard.opened_at = self._clock()
        shard.traces.append(trace)
        shard.tokens += trace.hidden.shape[0]
        self._answer_tokens += trace.answer_tokens

    def flush(self) -> None:
        """Write the open shard, if it holds any request. A shard that cannot be written is dropped and counted."""
        shard, self._open_shard = self._open_shard, _OpenShard()
        if not shard.traces:
            return
        stem = f"{self.settings.pod}-{self.settings.boot}-{self._seq:08d}"
        part, data = (self._folder.spool / f"{stem}.safetensors{suffix}" for suffix in (".tmp", ""))
        try:
            self._write(shard, part, data)
        except (OSError, SafetensorError) as error:
            self._spool_dropped += 1
            log.error("aurora capture: a shard of %d requests could not be written: %s", len(shard.traces), error)  # noqa: TRY400
            for path in (part, data):
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
            return
        self.limit_spool()

    def _write(self, shard: _OpenShard, part: Path, data: Path) -> None:
        """Write ``part``, rename it to ``data``, and then write the manifest.

        Raises :class:`OSError`, or :class:`SafetensorError` for a full disk. Since version 0.7, safetensors writes
        without a copy and without the interpreter's lock, which the scheduler of this process needs.
        """
        lost = self._lost + self._assembler.dropped.total()
        save_file(shard_tensors(shard.traces, self.settings.state_type), part)
        with part.open("rb") as written:
            os.fsync(written.fileno())
        file = FileRef(name=data.name, sha256=sha256_file(part), size=part.stat().st_size)
        manifest = self._manifest(shard, file, lost - self._lost_before)
        part.chmod(0o644)
        part.rename(data)
        write_atomically(data.with_suffix(".json"), manifest.to_json())
        self._lost_before = lost
        self._seq += 1

    def _manifest(self, shard: _OpenShard, file: FileRef, lost: int) -> ShardManifest:
        return ShardManifest(
            lineage=self.settings.lineage,
            pod=self.settings.pod,
            boot=self.settings.boot,
            seq=self._seq,
            file=file,
            dropped_records=lost,
            created=datetime.now(UTC),
            **shard_counts(shard.traces),
        )

    def limit_spool(self) -> None:
        """Drop the oldest shards until the spool is within its limit. The newest shard always stays.

        The agent deletes shards here at the same time. Those are uploaded, so they are no loss.
        """
        sizes: dict[Path, int] = {}
        for path in sorted(self._folder.spool.glob("*.safetensors"), key=shard_age_key):
            with contextlib.suppress(FileNotFoundError):
                sizes[path] = path.stat().st_size
        total = sum(sizes.values())
        for path in [*sizes][:-1]:
            if total <= self.settings.max_spool_bytes:
                return
            path.with_suffix(".json").unlink(missing_ok=True)
            total -= sizes[path]
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
                self._spool_dropped += 1

    def remove_incomplete_shards(self) -> None:
        """Remove the unfinished shards of a dead engine: partial files, and data without a manifest."""
        for path in self._folder.spool.glob("*.safetensors.tmp"):
            path.unlink(missing_ok=True)
        for path in self._folder.spool.glob("*.safetensors"):
            if not path.with_suffix(".json").exists():
                path.unlink(missing_ok=True)

    def state(self) -> CaptureState:
        """Counters since the engine started."""
        dropped = self._lost + self._long_prompts + self._assembler.dropped.total()
        losses = {"queue": self._lost, "hook": self._hook_errors, "spool": self._spool_dropped}
        losses |= {reason.replace(" ", "_"): count for reason, count in self._assembler.dropped.items()}
        losses["long_prompt"] = losses.get("long_prompt", 0) + self._long_prompts
        return CaptureState(
            boot=self.settings.boot,
            ok=True,
            probe_records=self._probes,
            captured_records=self._records,
            dropped_records=dropped,
            hook_errors=self._hook_errors,
            traced_answer_tokens=self._answer_tokens,
            shards_dropped=self._spool_dropped,
            losses={reason: count for reason, count in losses.items() if count},
            live=self.ended_requests.counters(),
        )

    def heartbeat(self) -> None:
        """Write the counters. A full disk loses a heartbeat and no trace, so this is no hook error."""
        try:
            write_atomically(self._folder.capture, self.state().to_json())
        except OSError as error:
            log.warning("aurora capture: the counters could not be written: %s", error)
