"""Paths in the folder that the containers of an inference pod share, and the atomic write of its files.

This module imports neither torch nor sglang, because the agent imports it. Invariant: every record is replaced by an
atomic rename, so that a reader never sees half a record.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from aurora_protocol.agent_api import TraceBudget
from aurora_protocol.errors import InvalidRecord
from aurora_protocol.record import Record
from aurora_runtime.serving.pod_records import (
    CaptureState,
    EngineCrashes,
    EngineState,
    SpeculationState,
    Withdrawal,
)

MANIFEST: Final = "manifest.json"
"""Name of the manifest in a draft's folder."""
MAX_SPOOL_BYTES: Final = 4 << 30
"""Bytes of shards that wait for their upload in the pod's folder, before the oldest shard is dropped."""

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class PodFolder:
    """The shared folder of one pod. A property is the path of the folder or JSON file of the same name.

    :mod:`aurora_runtime.serving.pod_records` holds the records in these files.
    """

    path: Path

    @property
    def drafts(self) -> Path:
        return self.path / "drafts"

    @property
    def current(self) -> Path:
        """Symlink to the folder of the draft that the engine starts with."""
        return self.drafts / "current"

    def draft(self, version: int, digest: str) -> Path:
        """The folder of a draft."""
        return self.drafts / f"{version:08d}-{digest[:12]}"

    def make_current(self, draft: Path) -> None:
        """Point ``current`` at the folder ``draft`` atomically."""
        link = self.drafts / f".current.{secrets.token_hex(4)}"
        link.symlink_to(draft.name)
        os.replace(link, self.current)

    @property
    def spool(self) -> Path:
        """Folder of the shards that wait for their upload."""
        return self.path / "spool"

    @property
    def lineage(self) -> Path:
        return self.path / "lineage.json"

    @property
    def capture(self) -> Path:
        return self.path / "capture.json"

    @property
    def speculation(self) -> Path:
        return self.path / "speculation.json"

    @property
    def engine(self) -> Path:
        return self.path / "engine.json"

    @property
    def crashes(self) -> Path:
        return self.path / "crashes.json"

    @property
    def withdrawal(self) -> Path:
        return self.path / "withdrawal.json"

    @property
    def swap_request(self) -> Path:
        """The last swap request that the agent accepted."""
        return self.path / "swap.json"

    @property
    def trace_budget(self) -> Path:
        """The last trace budget that the operator ordered."""
        return self.path / "trace-budget.json"

    def read_crashes(self, version: int) -> EngineCrashes:
        """The engine's crashes with this draft version. A damaged record counts as none."""
        with contextlib.suppress(InvalidRecord):
            crashes = _read(self.crashes, EngineCrashes)
            if crashes is not None and crashes.version == version:
                return crashes
        return EngineCrashes(version=version)

    def read_withdrawal(self) -> Withdrawal | None:
        return _read(self.withdrawal, Withdrawal)

    def read_engine_state(self) -> EngineState | None:
        return _read(self.engine, EngineState)

    def ready_boot(self) -> str:
        """The id of the engine start that the launcher reported ready. Empty when there is none."""
        state = self.read_engine_state()
        return state.boot if state is not None and state.ready else ""

    def read_capture_state(self) -> CaptureState | None:
        return _read(self.capture, CaptureState)

    def read_trace_budget(self) -> TraceBudget | None:
        """The last order; None without one, and where the disk damaged it: the operator then orders again."""
        try:
            return _read(self.trace_budget, TraceBudget)
        except InvalidRecord:
            return None

    def read_speculation_state(self) -> SpeculationState | None:
        return _read(self.speculation, SpeculationState)


def _read(path: Path, record: type[R]) -> R | None:
    try:
        return record.from_json(path.read_bytes())
    except FileNotFoundError:
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
