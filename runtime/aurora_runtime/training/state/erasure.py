"""Erases the traces of one tag from all shards, and proves it.

The trainer does this at its start, before it reads a shard: whatever was in the memory of the trainer before is gone,
and nothing of the erased traces is read again. A shard keeps its key, so no stored state has to change. A shard of
which nothing is left becomes one of no requests.

Invariants:

- An interruption at any point loses no trace of others, and the next start goes on: the step record says what the
  shard under way becomes, before it is touched.
- A report is written only after a scan of all shards. The scan reads the tags in the data, not what a manifest says.
- The scan after a report reads only what came since. Each report counts what was removed since the one before.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from aurora_protocol.draft_records import INITIAL_VERSION
from aurora_protocol.erasure_records import ErasureReport
from aurora_protocol.errors import InvalidRecord, NewerRecord
from aurora_protocol.training_records import ErasureStep, ShardManifest
from aurora_runtime.errors import Interrupted, NewerTraceFormat, TraceFormatError
from aurora_runtime.request_privacy import number_of_hash
from aurora_runtime.shard_header import ShardHeader
from aurora_runtime.traces import RequestTrace, decode, empty_shard, encode, shard_counts, state_type_of
from aurora_runtime.training.lineage import utc_now
from aurora_runtime.training.retry import Retrier
from aurora_store import Registry
from aurora_store.errors import DigestMismatch, ObjectMissing

MAX_SCANS: Final = 5
"""Scans until a client that goes on sending the tag is no longer waited for."""
CLOCK_SLACK: Final = timedelta(hours=1)
"""How far the clocks of the store and of inference pods may be from the trainer's. So a scan of what came since misses
nothing, and no version that may have learned from a removed trace is left out."""
UPLOAD_SECONDS: Final = 30.0
"""Time for an upload under way to become a shard. Data with the tag that stay without a manifest are deleted."""
ANNOUNCEMENT_SECONDS: Final = 20.0
log = logging.getLogger(__name__)


@dataclass
class _Scan:
    """The result of a scan. ``scanned`` counts shards, ``traces`` the traces with the tag."""

    shards: list[str] = field(default_factory=list)
    """Shards with such traces, and shards that nobody can read."""
    uploads: dict[str, datetime] = field(default_factory=dict)
    """Unfinished uploads with such traces, and when they were written."""
    scanned: int = 0
    traces: int = 0


class TagErasure:
    """The erasure of one tag from the traces of ``lineage``."""

    def __init__(
        self, registry: Registry, lineage: int, tag: str, retrier: Retrier, announce: Callable[[str], None]
    ) -> None:
        """``tag`` is the tag's hash. ``announce`` is told now and then what goes on."""
        self._registry, self._lineage, self._tag, self._retrier = registry, lineage, tag, retrier
        self._announce, self._next_announcement = announce, 0.0
        self._number = number_of_hash(tag)

    def run(self) -> ErasureReport:
        """Erase what there is, and return the newest report. Safe to repeat.

        Raises :class:`StoreError`, and :class:`Interrupted` when the trainer is asked to stop.
        """
        registry, last = self._registry, self._registry.last_erasure_report(self._tag)
        step = registry.erasure_step(self._tag)
        if step is not None and last is not None and step.started == last.started:
            step = None  # the report was written, and the step not yet deleted
            registry.delete_erasure_step(self._tag)
        if step is not None:
            self._finish(step)
        distrusted = last if last is not None and self._is_from_the_future(last) else None
        trusted = last if distrusted is None else None
        since = _minus_clock_slack(trusted.completed) if trusted is not None and step is None else None
        started = step.started if step else utc_now()
        for _ in range(MAX_SCANS):
            scan = self._scan(since)
            if not (scan.shards or scan.uploads):
                break
            for count, key in enumerate(scan.shards):
                self._go_on(f"{len(scan.shards) - count} of {scan.scanned} shards are still to be rewritten")
                step = self._rewrite(key, step, started)
            self._delete_unfinished(scan.uploads)
        else:
            scan = self._scan(since)
        if step is None and trusted is not None and not scan.traces:
            return trusted
        number = max(registry.erasure_report_numbers(self._tag), default=0) + 1
        return self._report(step, scan, number, started, distrusted.versions if distrusted else ())

    def _is_from_the_future(self, report: ErasureReport) -> bool:
        """Whether ``report`` says that it was completed in the future: then nobody knows which shards it covers."""
        if _minus_clock_slack(report.completed) <= utc_now():
            return False
        log.error("report %d about the tag %s is from the future, so all shards are scanned", report.number, self._tag)
        return True

    def _go_on(self, what: str) -> None:
        """Say what goes on, but not too often. Raises :class:`Interrupted` when the trainer is asked to stop."""
        if self._retrier.stopping:
            raise Interrupted(f"asked to stop while erasing the tag {self._tag}; the next start goes on")
        if time.monotonic() >= self._next_announcement:
            self._next_announcement = time.monotonic() + ANNOUNCEMENT_SECONDS
            self._announce(f"erasing the tag {self._tag}: {what}")

    def _scan(self, since: datetime | None) -> _Scan:
        scan = _Scan()
        for key, written, is_upload in self._listed(since):
            self._go_on(f"{scan.scanned} shards are scanned")
            tagged = self._tagged_traces(key)
            scan.traces += tagged or 0
            if is_upload:
                if tagged:
                    scan.uploads[key] = written
                continue
            scan.scanned += 1
            if tagged != 0:  # some, or nobody knows how many
                scan.shards.append(key)
        return scan

    def _listed(self, since: datetime | None) -> Iterator[tuple[str, datetime, bool]]:
        """Shards and unfinished uploads: key, when it was written, and whether it is an upload."""
        listing = self._registry.list_shards(self._lineage)
        for keys, is_upload in ((listing.written, False), (listing.orphans, True)):
            for key, written in keys.items():
                if since is None or written >= since:
                    yield key, written, is_upload

    def _tagged_traces(self, key: str) -> int | None:
        """How many traces of a shard have the tag. None: nobody can read the shard's header."""
        try:
            header = ShardHeader(lambda first, size: self._registry.shard_range(key, first, size))
            return header.tags().count(self._number)
        except ObjectMissing:
            return 0
        except (ValueError, RecursionError):
            return None

    def _rewrite(self, key: str, before: ErasureStep | None, started: datetime) -> ErasureStep | None:
        """Rewrite one shard without the tag's traces. Returns the step, or ``before`` when the shard is gone."""
        registry = self._registry
        try:
            manifest, raw = registry.shard_manifest(key), registry.unverified_shard(key)
        except ObjectMissing:
            return before
        except NewerRecord:
            raise  # a newer trainer can read the shard, and must erase the tag from it
        except (InvalidRecord, DigestMismatch) as error:
            log.error("shard %s is deleted, because nobody can read it: %s", key, error)  # noqa: TRY400
            registry.delete_shard(key)
            return before
        digest = hashlib.sha256(raw).hexdigest()
        traces = self._traces(key, raw) if digest == manifest.file.sha256 else None
        kept, data = self._without_tag(traces, raw)
        removed = [trace for trace in traces or () if trace.tag == self._number]
        since = dict(before.trained_since) if before else {}
        if traces is None or any(not trace.held_out for trace in removed):
            since[manifest.lineage] = min(since.get(manifest.lineage, manifest.created), manifest.created)
        step = ErasureStep(
            tag=self._tag,
            started=started,
            shards_rewritten=(before.shards_rewritten if before else 0) + (traces is not None),
            shards_unreadable=(before.shards_unreadable if before else 0) + (traces is None),
            traces_removed=(before.traces_removed if before else 0) + len(removed),
            shard=key,
            replaced=digest,
            manifest=_manifest_of(manifest, kept, data),
            trained_since=since,
        )
        registry.put_erasure_step(step)
        registry.replace_shard(key, step.manifest, data)
        return step

    def _finish(self, step: ErasureStep) -> None:
        """Finish the shard that an interrupted trainer worked on."""
        registry, key = self._registry, step.shard
        if self._manifest_digest(key) == step.manifest.file.sha256:
            return
        try:
            raw = registry.unverified_shard(key)
        except (ObjectMissing, DigestMismatch):
            registry.delete_shard(key)
            return
        # Done twice this gives the same bytes, whether the data were replaced before the interruption or not.
        known = hashlib.sha256(raw).hexdigest() in (step.replaced, step.manifest.file.sha256)
        kept, data = self._without_tag(self._traces(key, raw) if known else None, raw)
        registry.replace_shard(key, _manifest_of(step.manifest, kept, data), data)

    def _traces(self, key: str, raw: bytes) -> list[RequestTrace] | None:
        """The traces of the shard ``key``. None when the bytes are no shard.

        Raises :class:`NewerTraceFormat` for a shard that a newer trainer can read, and must erase the tag from.
        """
        try:
            return list(decode(raw))
        except NewerTraceFormat as error:
            raise NewerTraceFormat(f"{key}: {error}, and then erase the tag {self._tag}") from error
        except TraceFormatError:
            return None

    def _manifest_digest(self, key: str) -> str | None:
        """The digest that a shard's manifest names. None: there is no manifest that anybody can read."""
        try:
            return self._registry.shard_manifest(key).file.sha256
        except NewerRecord:
            raise  # as in _rewrite
        except (ObjectMissing, InvalidRecord, DigestMismatch):
            return None

    def _without_tag(self, traces: Iterable[RequestTrace] | None, raw: bytes) -> tuple[list[RequestTrace], bytes]:
        """The traces that stay, of the ``traces`` of the shard ``raw``, and a shard of them in the same format."""
        kept = [trace for trace in traces or () if trace.tag != self._number]
        return kept, encode(kept, state_type_of(raw)) if kept else empty_shard()

    def _delete_unfinished(self, uploads: dict[str, datetime]) -> None:
        """Delete uploads with the tag that do not become shards."""
        if uploads:
            self._retrier.sleep(UPLOAD_SECONDS)
        for key, written in uploads.items():
            self._go_on("unfinished uploads are deleted")
            if self._registry.orphan_written_at(key) == written:
                self._registry.delete_shard(key)

    def _report(
        self,
        step: ErasureStep | None,
        scan: _Scan,
        number: int,
        started: datetime,
        versions_before: tuple[int, ...],
    ) -> ErasureReport:
        """Write the report. ``versions_before``: those of the report that this one replaces."""
        registry = self._registry
        versions = {*versions_before, *self._versions_since(step.trained_since if step else {})}
        report = ErasureReport(
            tag=self._tag,
            number=number,
            started=started,
            shards_rewritten=step.shards_rewritten if step else 0,
            shards_unreadable=step.shards_unreadable if step else 0,
            traces_removed=step.traces_removed if step else 0,
            shards_scanned=scan.scanned,
            remaining_traces=scan.traces,
            versions=tuple(sorted(versions)),
            completed=utc_now(),
        )
        registry.create_erasure_report(report)
        registry.delete_erasure_step(self._tag)
        log.info("erased the tag %s: %s", self._tag, report.model_dump_json(exclude={"tag"}))
        return report

    def _versions_since(self, since: Mapping[int, datetime]) -> Iterator[int]:
        """The versions of each lineage that were registered after its time, and so may have learned since then."""
        for registration in self._registry.registrations() if since else ():
            if registration.version == INITIAL_VERSION or registration.lineage not in since:
                continue
            if registration.created >= _minus_clock_slack(since[registration.lineage]):
                yield registration.version


def _minus_clock_slack(moment: datetime) -> datetime:
    """``moment`` in the past by :data:`CLOCK_SLACK`. Anybody may have written it, so it may be the first of all."""
    try:
        return moment - CLOCK_SLACK
    except OverflowError:
        return moment


def _manifest_of(manifest: ShardManifest, kept: list[RequestTrace], data: bytes) -> ShardManifest:
    """``manifest`` for the traces that are left."""
    file = manifest.file.model_copy(update={"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)})
    return manifest.model_copy(update={"file": file, **shard_counts(kept)})


def erase_tags(
    registry: Registry, lineage: int, tags: Iterable[str], retrier: Retrier, announce: Callable[[str], None]
) -> tuple[ErasureReport, ...]:
    """Erase each of ``tags``, as long as it takes. Returns the newest report about each."""
    erasures = {tag: TagErasure(registry, lineage, tag, retrier, announce) for tag in tags}
    return tuple(retrier.call(f"erasing the tag {tag}", erasure.run, announce) for tag, erasure in erasures.items())
