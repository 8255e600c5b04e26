"""What the containers of an inference pod leave for each other: the pod's folder, its files, and the records in them.

This module imports neither torch nor sglang, because the agent imports it. Invariant: every record is replaced by an
atomic rename, so that a reader never sees half a record. Only our own processes write these records, so they are not
checked beyond their types.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, TypeVar

from pydantic import Field

from aurora_api.base import Timestamp
from aurora_protocol.agent_api import LiveCounters, Machine, SavedTime, SwapRequest, TraceBudget, measurement_pass
from aurora_protocol.errors import InvalidRecord
from aurora_protocol.record import Record, Sha256

MANIFEST: Final = "manifest.json"
"""Name of the manifest in a draft's folder."""
MAX_SPOOL_BYTES: Final = 4 << 30
"""Bytes of shards that wait for their upload in the pod's folder, before the oldest shard is dropped."""
CRASH_WINDOW: Final = timedelta(minutes=10)

R = TypeVar("R", bound=Record)

# the records ---------------------------------------------------------------------------------------------------------


class EngineState(Record):
    """``engine.json``: the launcher reports the engine start that is running."""

    boot: str = Field(description="Random id of this engine start.")
    ready: bool = Field(description="Whether the engine answers requests and, with a draft, captures traces.")
    started_at: Timestamp
    machine: Machine | None = None
    held_version: int | None = Field(
        default=None, description="The draft version with which this start does not speculate, after EngineCrashes."
    )


class EngineCrashes(Record):
    """``crashes.json``: when the engine ended by itself with one draft version, at most twice.

    Two crashes hold every later start with this version to rounds without speculation. The cause may be our code in
    SGLang, which a restart would meet again. The init container removes the file.
    """

    version: int
    at: tuple[Timestamp, ...] = ()

    @property
    def hold(self) -> bool:
        return len(self.at) > 1

    def plus(self, now: datetime) -> EngineCrashes:
        """With a crash at ``now``, and without those that are too old to count."""
        recent = tuple(at for at in self.at if now - at <= CRASH_WINDOW)
        return self if self.hold else EngineCrashes(version=self.version, at=(*recent, now))


class CaptureState(Record):
    """``capture.json``: counters of the capture plugin since the engine started."""

    boot: str
    ok: bool = Field(description="False: the plugin refused to capture; `error` says why.")
    error: str = ""
    probe_records: int = Field(default=0, description="Captured verify rounds of the launcher's probe request.")
    captured_records: int = 0
    dropped_records: int = 0
    hook_errors: int = Field(default=0, description="Exceptions inside hooks. Each loses the records of one batch.")
    traced_answer_tokens: int = 0
    shards_dropped: int = 0
    losses: dict[str, int] = Field(default_factory=dict, description="What was lost, by reason.")
    live: LiveCounters = Field(default=LiveCounters(), description="The ended requests of clients, traced or not.")


class SourceCounters(Record):
    """What one source of proposals (lookup or draft) did since the engine started.

    Item ``i`` of a tuple stands for the ``i + 1``-th proposed token of a chain. A chain of 3 tokens, of which the
    target accepted 1, adds 1 to the first 3 items of `proposed_at` and to the first item of `accepted_at`.
    """

    proposed_at: tuple[int, ...] = Field(default=(), description="Chains with a proposed token at each position.")
    accepted_at: tuple[int, ...] = Field(default=(), description="Chains accepted up to each position.")


class SpeculationState(Record):
    """``speculation.json``: decisions and results of the speculation controller since the engine started.

    A round of ``rounds_by_arm`` is one decode round of the batch. A round of a :class:`SourceCounters` is one request's
    part of a decode round.
    """

    boot: str
    ok: bool = Field(default=True, description="False: the plugin refused to install its hooks; `error` says why.")
    error: str = ""
    errors: int = Field(default=0, description="Rounds that were decided without the controller after an error.")
    rounds_by_arm: dict[str, int] = Field(default_factory=dict)
    lookup: SourceCounters = SourceCounters()
    draft: SourceCounters = SourceCounters()
    speedup_over_off: float | None = Field(
        default=None, description="Estimated throughput relative to no speculation. None: nothing to estimate it from."
    )
    saved_time: SavedTime | None = Field(
        default=None, description="Time that speculation saves. None: nothing to estimate it from."
    )


class Withdrawal(Record):
    """``withdrawal.json``: the pod is withdrawn from its Service. The pod is not ready while the file exists.

    The agent writes the file before it loads any trial draft. The agent removes the file once it has confirmed that
    the engine holds the current draft again.
    """

    measurement: str
    boot: str = Field(description="The engine start that is lent. The next start removes the file.")
    current_digest: Sha256 = Field(description="The draft to restore: the pod's current draft.")
    current_checksum: str
    closed: bool = Field(
        default=False, description="Whether the engine refuses clients. Only then may it hold a trial draft."
    )
    restart: bool = Field(
        default=False, description="Whether the engine cannot restore the draft. The launcher then starts it again."
    )
    pass_sha256: Sha256 = Field(description="Digest of the pass that the measurement's requests carry. No secret.")


def pass_digest(token: str, measurement: str) -> str:
    """The digest of a measurement's pass, as :class:`Withdrawal` keeps it."""
    return hashlib.sha256(measurement_pass(token, measurement).encode()).hexdigest()


# the folder ----------------------------------------------------------------------------------------------------------


class PodFolder:
    """The shared folder of one pod. An attribute is the path of the folder or JSON file of the same name."""

    def __init__(self, path: Path) -> None:
        self.path: Final = path
        self.drafts: Final = path / "drafts"
        self.current: Final = self.drafts / "current"
        """Symlink to the folder of the draft that the engine starts with."""
        self.spool: Final = path / "spool"
        """Folder of the shards that wait for their upload."""
        self.lineage: Final = path / "lineage.json"
        self.capture: Final = path / "capture.json"
        self.speculation: Final = path / "speculation.json"
        self.engine: Final = path / "engine.json"
        self.crashes: Final = path / "crashes.json"
        self.withdrawal: Final = path / "withdrawal.json"
        self.swap_request: Final = path / "swap.json"
        """The last swap request that the agent accepted."""
        self.trace_budget: Final = path / "trace-budget.json"
        """The last trace budget that the operator ordered."""

    def draft(self, version: int, digest: str) -> Path:
        """The folder of a draft."""
        return self.drafts / f"{version:08d}-{digest[:12]}"

    def make_current(self, draft: Path) -> None:
        """Point ``current`` at the folder ``draft`` atomically."""
        link = self.drafts / f".current.{secrets.token_hex(4)}"
        link.symlink_to(draft.name)
        os.replace(link, self.current)

    def read_crashes(self, version: int) -> EngineCrashes:
        """The engine's crashes with this draft version."""
        crashes = _read(self.crashes, EngineCrashes)
        return crashes if crashes is not None and crashes.version == version else EngineCrashes(version=version)

    def read_withdrawal(self) -> Withdrawal | None:
        """The withdrawal. Where the disk has damaged it: one that admits nobody and orders another engine start.

        The engine may hold a trial draft then, and the checksum of the current draft is lost.
        """
        try:
            return Withdrawal.from_json(self.withdrawal.read_bytes())
        except FileNotFoundError:
            return None
        except InvalidRecord:
            return Withdrawal(
                measurement="unknown",
                boot=self.ready_boot(),
                current_digest="0" * 64,
                current_checksum="",
                closed=True,
                restart=True,
                pass_sha256="0" * 64,
            )

    def read_engine_state(self) -> EngineState | None:
        return _read(self.engine, EngineState)

    def ready_boot(self) -> str:
        """The id of the engine start that the launcher reported ready. Empty when there is none."""
        state = self.read_engine_state()
        return state.boot if state is not None and state.ready else ""

    def read_capture_state(self) -> CaptureState | None:
        return _read(self.capture, CaptureState)

    def read_swap_request(self) -> SwapRequest | None:
        return _read(self.swap_request, SwapRequest)

    def read_trace_budget(self) -> TraceBudget | None:
        """The last order. Without one, the operator orders again."""
        return _read(self.trace_budget, TraceBudget)

    def read_speculation_state(self) -> SpeculationState | None:
        return _read(self.speculation, SpeculationState)


def _read(path: Path, record: type[R]) -> R | None:
    """The record. None: there is none, or the disk has damaged it, and its writer soon writes another one."""
    try:
        return record.from_json(path.read_bytes())
    except (FileNotFoundError, InvalidRecord):
        return None


def new_boot() -> str:
    """A random id for one engine start. Later ids sort after earlier ones, so that shards sort by age."""
    return f"{int(time.time()):08x}{secrets.token_hex(4)}"


def shard_age_key(path: Path) -> list[str]:
    """Sorts the files ``<pod>-<boot>-<number>.*`` of the spool by age, oldest first, whichever pod wrote them."""
    return path.name.rsplit("-", 2)[1:]


def write_atomically(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Replace the file at ``path``. A reader sees either the old bytes or the new ones.

    ``durable``: this also holds after a node loses power, and the new bytes are on the disk when this returns. Without
    it, the file may then be empty. It costs two syncs, so it is for orders, and not for reports of every second.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        part.write_bytes(data)
        part.chmod(0o644)
        if durable:
            _sync(part)
        os.replace(part, path)
        if durable:
            _sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
