"""Remembers on which shard the trainer died, and quarantines a shard after its second death.

Why: a shard may kill the trainer, for example through its memory. A restarted trainer would take the same shard first,
and would die for ever. A shard that merely raises an error is damaged and skipped, and needs none of this.

The file lies in the pod's own folder. Nobody else writes there, no shard costs a call of the store, and the folder
outlives the container.

Invariants: a shard is quarantined only after two deaths during work on that shard, without a success in between. After
two quarantines without a success in between no further shard is quarantined: a trainer that dies on every shard has
another cause, such as a small memory limit, and its traces shall be there when the cause is gone. An orderly stop is no
death. Without a folder that can be written to there is no quarantine, and the trainer still runs.
"""

from __future__ import annotations

import logging
import os
import secrets
from pathlib import Path
from typing import Final

from pydantic import Field

from aurora_protocol.errors import InvalidRecord
from aurora_protocol.record import Record

DEATHS_BEFORE_QUARANTINE: Final = 2
QUARANTINES_IN_A_ROW: Final = 2
MAX_SHARDS_REMEMBERED: Final = 64
FILE_NAME: Final = "shard-deaths.json"
log = logging.getLogger(__name__)


class _DeathRecord(Record):
    """The content of the file."""

    current: str | None = Field(default=None, description="The shard that the trainer works on.")
    deaths: dict[str, int] = Field(default_factory=dict, description="How often the trainer died on a shard.")
    quarantined: tuple[str, ...] = Field(default=(), description="Shards that are not read any more, newest last.")
    in_a_row: int = Field(default=0, ge=0, description="Quarantines since the work on a shard last succeeded.")


class ShardDeaths:
    """The deaths of one trainer. Only the process that trains has one."""

    def __init__(self, folder: Path | None = None) -> None:
        """Read the file in ``folder``. A shard that the last process worked on when it ended counts as a death.

        Without a folder, or with one that does not exist, nothing is remembered.
        """
        self._path = folder / FILE_NAME if folder is not None and folder.is_dir() else None
        record = self._stored()
        self._deaths, self._quarantined = dict(record.deaths), list(record.quarantined)
        self._in_a_row = record.in_a_row
        self._current: str | None = None
        self._stopped = False
        if record.current is not None:
            self._count_death(record.current)
            self._write()

    @property
    def quarantined(self) -> tuple[str, ...]:
        """The manifest keys of the shards in quarantine, newest last."""
        return tuple(self._quarantined)

    @property
    def suspects(self) -> bool:
        """Whether a shard is under suspicion. Then shards are read one at a time, so that the right one is blamed."""
        return bool(self._deaths)

    def begin(self, key: str) -> None:
        """Note that work on a shard begins."""
        if not self._stopped:
            self._current = key
            self._write()

    def survived(self) -> None:
        """Note that the work on the current shard succeeded."""
        if self._current is not None:
            self._deaths.pop(self._current, None)
            self._current, self._in_a_row = None, 0
            self._write()

    def stop(self) -> None:
        """Note that the trainer was asked to stop. Its end is no death. Safe in a signal handler."""
        self._stopped, self._current = True, None
        self._write()

    def _count_death(self, key: str) -> None:
        self._deaths[key] = deaths = self._deaths.get(key, 0) + 1
        log.error("the trainer died during its work on shard %s, %d time(s) so far", key, deaths)
        if deaths < DEATHS_BEFORE_QUARANTINE:
            return
        if self._in_a_row >= QUARANTINES_IN_A_ROW:
            log.error("the trainer dies on every shard, so look for another cause, such as a small memory limit")
        else:
            del self._deaths[key]
            self._in_a_row += 1
            self._quarantined = [*(other for other in self._quarantined if other != key), key]
            log.error("shard %s is quarantined: it is not read any more", key)

    def _stored(self) -> _DeathRecord:
        if self._path is None:
            return _DeathRecord()
        try:
            return _DeathRecord.from_json(self._path.read_bytes())
        except FileNotFoundError:
            return _DeathRecord()
        except (OSError, InvalidRecord) as error:
            log.warning("earlier deaths of the trainer are not known: %s", error)
            return _DeathRecord()

    def _write(self) -> None:
        if self._path is None:
            return
        stopped = self._stopped
        self._replace_file(
            self._path,
            _DeathRecord(
                current=None if stopped else self._current,
                deaths=dict(list(self._deaths.items())[-MAX_SHARDS_REMEMBERED:]),
                quarantined=tuple(self._quarantined[-MAX_SHARDS_REMEMBERED:]),
                in_a_row=self._in_a_row,
            ),
        )
        if self._stopped and not stopped:
            self._write()  # a signal came meanwhile, and this write replaced the one of its handler

    @staticmethod
    def _replace_file(path: Path, record: _DeathRecord) -> None:
        part = path.with_name(f".{FILE_NAME}.{secrets.token_hex(4)}")
        try:
            part.write_bytes(record.to_json())
            os.replace(part, path)
        except OSError as error:
            log.warning("a death of the trainer would not be noticed: %s", error)
            part.unlink(missing_ok=True)
