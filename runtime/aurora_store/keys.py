"""Keys in the store. Only this module spells keys, so that the layout can be read in one place.

::

    <prefix>/<path>/                               the speculator's root; all keys below are relative to it
      lineage/<n>.json                               create-once
      traces/<lineage>/<date>/<hour>/<pod>-<boot>-<seq>.safetensors, then .json
      checkpoints/<version>-<digest12>/...           files, then manifest.json
      registry/<version>.json                        create-once: one writer can take a version
      expired/<version>.json                         create-once: the version's checkpoint is deleted
      evidence/<version>/<attempt>.json              create-once
      channel/<epoch>.json                           create-once; the highest epoch wins
      trainer/status.json                            overwritten in place
      trainer/state/<epoch>/state-<sha12>.safetensors, then trainer/state/<epoch>.json, create-once

The name of a trainer state's data has a digest, so that two trainers that save the same epoch write different objects.

Invariant: numbers are zero-padded, so the lexical order of a listing is the order of the numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime

from aurora_protocol.errors import InvalidRecord
from aurora_protocol.record import MAX_NUMBER
from aurora_store.errors import bounded_text

NUMBER_WIDTH = len(str(MAX_NUMBER))
OWNER_ID_CHARACTERS = 8
MAX_NUMBER_GAP = 1000
"""Most numbers that a sequence of records may skip. Writers take the next number, or the one after a taken number."""
MAX_ATTEMPT_GAP = MAX_NUMBER
"""The same for the attempts at measuring one version. An attempt that could not be made takes a number and leaves no
evidence, and may be repeated for weeks."""
_RECORD_NAME = re.compile(rf"[0-9]{{{NUMBER_WIDTH}}}\.json", re.ASCII)
_SHARD_HOUR = re.compile(r"traces/[0-9]+/([0-9]{4}-[0-9]{2}-[0-9]{2})/([0-9]{2})/[^/]+", re.ASCII)
_CHECKPOINT_FOLDER = re.compile(rf"checkpoints/([0-9]{{{NUMBER_WIDTH}}})-[^/]+/", re.ASCII)
_STATE_KEY = re.compile(rf"trainer/state/([0-9]{{{NUMBER_WIDTH}}})(\.json|/.+)", re.ASCII)
_SHARD_KEY = re.compile(r"traces(/[A-Za-z0-9][A-Za-z0-9._-]*)+\.json", re.ASCII)


def _number(value: int) -> str:
    return f"{value:0{NUMBER_WIDTH}d}"


def number_of(key: str) -> int:
    """The number at the end of a record's key: ``registry/00000003.json`` -> 3.

    Raises :class:`InvalidRecord` when the key has no such number: somebody else wrote it.
    """
    name = key.rsplit("/", 1)[-1]
    if _RECORD_NAME.fullmatch(name) is None:
        raise InvalidRecord(f"{bounded_text(key, 100)} has no record's name; delete it, and find out who wrote it")
    return int(name.removesuffix(".json"))


def record_numbers(keys: Iterable[str], prefix: str) -> list[int]:
    """The numbers of those of ``keys`` that are records directly below ``prefix``. Foreign keys are left out."""
    names = (key.removeprefix(prefix) for key in keys if key.startswith(prefix))
    return [number_of(name) for name in names if _RECORD_NAME.fullmatch(name)]


def trainer_state_epoch(key: str) -> int | None:
    """The epoch of the trainer state to whose record or data ``key`` belongs. None when the key is foreign."""
    found = _STATE_KEY.fullmatch(key)
    return int(found[1]) if found else None


def checkpoint_version(folder: str) -> int | None:
    """The version to which the folder of a checkpoint, with a closing slash, belongs. None when it is foreign."""
    found = _CHECKPOINT_FOLDER.fullmatch(folder)
    return int(found[1]) if found else None


def in_sequence(numbers: Iterable[int], known: int = 0, *, max_gap: int = MAX_NUMBER_GAP) -> list[int]:
    """``numbers`` in ascending order, up to the first that skips more than ``max_gap`` after ``known``.

    Why: the highest number wins, so one foreign record with the last possible number would win for ever, and no writer
    could take a number after it. The last :data:`MAX_NUMBER_GAP` numbers are never in sequence.
    """
    kept: list[int] = []
    for number in sorted(numbers):
        if number - (kept[-1] if kept else known) > max_gap or number > MAX_NUMBER - MAX_NUMBER_GAP:
            break
        kept.append(number)
    return kept


def is_shard_key(key: str) -> bool:
    """Whether ``key`` can be the key of a shard's manifest: a path below the traces, without hidden parts or ``..``."""
    return _SHARD_KEY.fullmatch(key) is not None


def lineage_of_shard(key: str) -> int:
    """The lineage that the key of a shard names. Raises ValueError when the key is none of an agent."""
    return int(key.split("/")[1])


def shard_hour(key: str) -> datetime | None:
    """The beginning of the hour in which a shard was written, according to its key. None when the key names no hour."""
    found = _SHARD_HOUR.fullmatch(key)
    if found is None:
        return None
    try:
        return datetime.strptime(f"{found[1]} {found[2]}+0000", "%Y-%m-%d %H%z")
    except ValueError:
        return None


def shard_data_key(manifest_key: str) -> str:
    """The key of a shard's data. Raises :class:`InvalidRecord` when ``manifest_key`` is not a manifest's."""
    if not is_shard_key(manifest_key):
        raise InvalidRecord(f"{bounded_text(manifest_key, 100)} is not the key of a shard's manifest")
    return f"{manifest_key.removesuffix('.json')}.safetensors"


def root(prefix: str, path: str | None, namespace: str, name: str) -> str:
    """The root of one speculator: ``path`` below ``prefix``. Without a path, its namespace and name.

    The root holds no uid, so a speculator that is created again finds the draft of the former one.
    """
    return "/".join(part for part in (prefix.strip("/"), path or f"{namespace}/{name}") if part)


def owner_id(uid: str) -> str:
    """The short form of a speculator's uid, which names the owner of a root."""
    return uid[:OWNER_ID_CHARACTERS]


class Keys:
    """Keys relative to a speculator's root."""

    LINEAGE = "lineage/"
    TRACES = "traces/"
    CHECKPOINTS = "checkpoints/"
    REGISTRY = "registry/"
    EXPIRED = "expired/"
    EVIDENCE = "evidence/"
    CHANNEL = "channel/"
    TRAINER_STATE = "trainer/state/"
    TRAINER_STATUS = "trainer/status.json"
    PROBE = "probe/"
    FOLDERS = (LINEAGE, TRACES, CHECKPOINTS, REGISTRY, EXPIRED, EVIDENCE, CHANNEL, "trainer/", PROBE)
    """Every key below a root begins with one of these."""

    @staticmethod
    def lineage(number: int) -> str:
        return f"lineage/{_number(number)}.json"

    @staticmethod
    def traces(lineage: int) -> str:
        return f"traces/{_number(lineage)}/"

    @staticmethod
    def shard(lineage: int, pod: str, boot: str, seq: int, created: datetime) -> str:
        """The stem of a shard's keys: append ``.safetensors`` for the data, ``.json`` for the manifest."""
        return f"traces/{_number(lineage)}/{created:%Y-%m-%d}/{created:%H}/{pod}-{boot}-{_number(seq)}"

    @staticmethod
    def checkpoint(version: int, digest: str) -> str:
        """The folder of a checkpoint, with a closing slash."""
        return f"checkpoints/{_number(version)}-{digest[:12]}/"

    @staticmethod
    def registration(version: int) -> str:
        return f"registry/{_number(version)}.json"

    @staticmethod
    def expired(version: int) -> str:
        return f"expired/{_number(version)}.json"

    @staticmethod
    def evidence(version: int, attempt: int) -> str:
        return f"evidence/{_number(version)}/{_number(attempt)}.json"

    @staticmethod
    def evidence_of(version: int) -> str:
        return f"evidence/{_number(version)}/"

    @staticmethod
    def channel(epoch: int) -> str:
        return f"channel/{_number(epoch)}.json"

    @staticmethod
    def trainer_state(epoch: int) -> str:
        return f"trainer/state/{_number(epoch)}.json"

    @staticmethod
    def trainer_state_folder(epoch: int) -> str:
        return f"trainer/state/{_number(epoch)}/"

    @staticmethod
    def trainer_state_file(sha256: str) -> str:
        """The name of a trainer state's data file in the folder of its epoch."""
        return f"state-{sha256[:12]}.safetensors"
