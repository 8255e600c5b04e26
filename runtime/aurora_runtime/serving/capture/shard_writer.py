"""The writer thread: records from the scheduler become requests, requests become shards in the spool.

Invariants: ``offer`` never blocks and never raises; a shard is data (fsynced, renamed into place) and then its
manifest, so that a manifest proves its data; the spool is bounded, the oldest shard goes first, and every loss is
counted. This thread alone drops shards; the agent deletes only what it has uploaded.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Final

from aurora_protocol.draft_records import FileRef
from aurora_protocol.training_records import ShardManifest
from aurora_runtime.serving.capture.safetensors_writer import write_safetensors
from aurora_runtime.serving.capture.trace_assembler import Assembler, PromptChunk, VerifyRound
from aurora_runtime.serving.pod_files import PROBE_PREFIX, CaptureSettings, CaptureState, PodFolder, write_atomically
from aurora_runtime.traces import RequestTrace, columns

log = logging.getLogger(__name__)

HEARTBEAT_S: Final = 1.0
POLL_S: Final = 0.2
ENDING_SHARD_S: Final = 2.0
"""An engine that was told to end may be gone soon, and an open shard with it; more often would overflow the spool."""

Batch = Callable[[], list[PromptChunk | VerifyRound]]
"""One batch's records, split by request only when called, so that the split costs the writer and not the scheduler."""


def sampled(rid: str, ratio: Decimal) -> bool:
    """Whether a request is traced: a pure function of its id, so that every rank and every batch agrees."""
    draw = int.from_bytes(hashlib.sha256(rid.encode()).digest()[:8], "big")
    return Decimal(draw) < ratio * (1 << 64)


@dataclass
class _Pending:
    """Finished requests waiting for their shard to close."""

    traces: list[RequestTrace] = field(default_factory=list)
    tokens: int = 0
    since: float = 0.0


class ShardWriter:
    """Takes batches from the scheduler and keeps the spool. One per scheduler process."""

    def __init__(self, settings: CaptureSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings = settings
        self._folder = PodFolder(Path(settings.state))
        self._clock = clock
        self._queue: queue.Queue[Batch] = queue.Queue(settings.queue_records)
        self._assembler = Assembler(
            top_k=settings.top_k, max_tokens=settings.shard_tokens, open_bytes=settings.open_bytes
        )
        self._pending = _Pending()
        self._seq = 0
        self._records = self._probes = self._requests = self._answer_tokens = 0
        self._lost = self._lost_before = 0
        self._written = self._spool_dropped = 0
        self._errors = 0
        self._next_heartbeat = 0.0
        self._ending = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    # the scheduler's side ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread; it is a daemon, because a scheduler that ends must not wait for it."""
        self._folder.spool.mkdir(parents=True, exist_ok=True)
        self._thread = threading.Thread(target=self._run, name="aurora-capture", daemon=True)
        self._thread.start()

    def offer(self, batch: Batch, records: int) -> None:
        """Hand over one batch; when the writer lags it is dropped and counted."""
        try:
            self._queue.put_nowait(batch)
        except queue.Full:
            self._lost += records

    def failed(self) -> None:
        """Count an exception inside a hook."""
        self._errors += 1

    # the thread ----------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Write what is finished and end the thread (tests; a dying engine's unfinished shard is lost by design)."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            self.tidy()
        except OSError as error:
            log.warning("aurora capture: cannot tidy the spool: %s", error)
        while not (self._stop.is_set() and self._queue.empty()):
            try:
                self.step()
            except Exception:  # the thread's outermost loop: a bug here must not end capture silently
                self._errors += 1
                log.exception("aurora capture: a batch was lost")
        self.flush()
        self.heartbeat()

    def step(self) -> None:
        """Take at most one batch in, then do what is due."""
        try:
            batch = self._queue.get(timeout=POLL_S)
        except queue.Empty:
            pass
        else:
            self._take(batch())
        now = self._clock()
        pending = self._pending
        full = pending.tokens >= self.settings.shard_tokens
        wait = min(self.settings.shard_seconds, ENDING_SHARD_S) if self._ending else self.settings.shard_seconds
        if pending.traces and (full or now - pending.since >= wait):
            self.flush()
        if now >= self._next_heartbeat:
            self._next_heartbeat = now + HEARTBEAT_S
            self._ending = self._folder.ending.exists()
            self.heartbeat()

    def _take(self, events: list[PromptChunk | VerifyRound]) -> None:
        for event in events:
            if event.rid.startswith(PROBE_PREFIX):
                self._probes += isinstance(event, VerifyRound)
                continue
            self._records += 1
            trace = self._assembler.add(event)
            if trace is not None:
                self._keep(trace)

    def _keep(self, trace: RequestTrace) -> None:
        pending = self._pending
        if not pending.traces:
            pending.since = self._clock()
        pending.traces.append(trace)
        pending.tokens += trace.hidden.shape[0]
        self._requests += 1
        self._answer_tokens += trace.answer_tokens

    def flush(self) -> None:
        """Close the shard, if it holds anything."""
        pending, self._pending = self._pending, _Pending()
        if not pending.traces:
            return
        lost = self._lost + self._assembler.dropped.total()
        manifest_lost, self._lost_before = lost - self._lost_before, lost
        stem = f"{self.settings.pod}-{self.settings.boot}-{self._seq:08d}"
        part = self._folder.spool / f"{stem}.safetensors.tmp"
        sha256, size = write_safetensors(part, columns(pending.traces))
        file = FileRef(name=f"{stem}.safetensors", sha256=sha256, size=size)
        manifest = self._manifest(pending, file, manifest_lost)
        self._seq += 1
        part.chmod(0o644)
        part.rename(self._folder.spool / file.name)
        write_atomically(self._folder.spool / f"{stem}.json", manifest.to_json())
        self._written += 1
        self.bound()

    def _manifest(self, pending: _Pending, file: FileRef, lost: int) -> ShardManifest:
        traces = pending.traces
        rounds = sum(t.root.shape[0] for t in traces)
        return ShardManifest(
            lineage=self.settings.lineage,
            pod=self.settings.pod,
            boot=self.settings.boot,
            seq=self._seq,
            file=file,
            requests=len(traces),
            tokens=pending.tokens,
            answer_tokens=sum(t.answer_tokens for t in traces),
            rounds=rounds,
            proposed=sum(t.node_token.shape[0] for t in traces) - rounds,
            accepted=sum(int(t.accepted.sum()) for t in traces),
            dropped_records=lost,
            draft_versions=tuple(sorted({v for t in traces for v in t.version.tolist()})),
            created=datetime.now(UTC),
        )

    def bound(self) -> None:
        """Drop the oldest shards until the spool is within its limits; the newest is always kept."""
        spool = self._folder.spool
        shards = sorted(spool.glob("*.safetensors"), key=lambda path: path.name.rsplit("-", 2)[1:])
        sizes = [path.stat().st_size if path.exists() else 0 for path in shards]
        excess = len(shards) - self.settings.spool_shards
        total = sum(sizes)
        for index, path in enumerate(shards[:-1]):
            if index >= excess and total <= self.settings.spool_bytes:
                return
            path.with_suffix(".json").unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            total -= sizes[index]
            self._spool_dropped += 1

    def tidy(self) -> None:
        """Remove what an engine that died left half written: parts, and data without a manifest."""
        for path in self._folder.spool.glob("*.safetensors.tmp"):
            path.unlink(missing_ok=True)
        for path in self._folder.spool.glob("*.safetensors"):
            if not path.with_suffix(".json").exists():
                path.unlink(missing_ok=True)

    def state(self) -> CaptureState:
        """Counters since the engine started."""
        dropped = self._lost + self._assembler.dropped.total()
        return CaptureState(
            boot=self.settings.boot,
            ok=True,
            probe_records=self._probes,
            captured_records=self._records,
            dropped_records=dropped,
            errors=self._errors,
            requests=self._requests,
            answer_tokens=self._answer_tokens,
            shards_written=self._written,
            shards_dropped=self._spool_dropped,
            updated=datetime.now(UTC),
        )

    def heartbeat(self) -> None:
        write_atomically(self._folder.capture, self.state().to_json())
