"""Keys in the store. Only this module spells keys, so that the layout can be read in one place.

::

    <prefix>/<namespace>/<name>-<uid8>/              the speculator's root; all keys below are relative to it
      lineage/<n>.json                               create-once
      traces/<lineage>/<date>/<hour>/<pod>-<boot>-<seq>.safetensors, then .json
      checkpoints/<version>-<digest12>/...           files, then manifest.json
      registry/<version>.json                        create-once: one writer can take a version
      evidence/<version>/<attempt>.json              create-once
      baselines/<lineage>/<version>-<attempt>.json   create-once, named after the measurement that wrote it
      channel/<epoch>.json                           create-once; the highest epoch wins
      trainer/status.json                            overwritten in place
      trainer/state/<epoch>/state-<sha12>.safetensors, then trainer/state/<epoch>.json, create-once

The digest in the name of a trainer state's data keeps the data of two trainers apart that save the same epoch.

Invariant: numbers are zero-padded, so the lexical order of a listing is the order of the numbers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

from aurora_protocol.errors import InvalidRecord
from aurora_store.errors import bounded_text

NUMBER_WIDTH = 8
OWNER_ID_CHARACTERS = 8
MAX_NUMBER = 10**NUMBER_WIDTH - 1
_RECORD_NAME = re.compile(rf"[0-9]{{{NUMBER_WIDTH}}}\.json", re.ASCII)


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


def root(prefix: str, namespace: str, name: str, uid: str) -> str:
    """The root of one speculator.

    The uid separates a speculator from an earlier one of the same name, so that no old data is taken over.
    """
    return "/".join(part for part in (prefix.strip("/"), namespace, f"{name}-{owner_id(uid)}") if part)


def owner_id(uid: str) -> str:
    """The short form of a speculator's uid, which names the owner of a root."""
    return uid[:OWNER_ID_CHARACTERS]


def first_owner(root: str) -> str:
    """The owner id of the speculator that a root is named after."""
    return root[-OWNER_ID_CHARACTERS:]


@dataclass(frozen=True)
class Keys:
    """Keys relative to a speculator's root."""

    LINEAGE = "lineage/"
    TRACES = "traces/"
    CHECKPOINTS = "checkpoints/"
    REGISTRY = "registry/"
    EVIDENCE = "evidence/"
    BASELINES = "baselines/"
    CHANNEL = "channel/"
    TRAINER_STATE = "trainer/state/"
    TRAINER_STATUS = "trainer/status.json"
    PROBE = "probe/"

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
    def evidence(version: int, attempt: int) -> str:
        return f"evidence/{_number(version)}/{_number(attempt)}.json"

    @staticmethod
    def evidence_of(version: int) -> str:
        return f"evidence/{_number(version)}/"

    @staticmethod
    def baseline(lineage: int, version: int, attempt: int) -> str:
        return f"baselines/{_number(lineage)}/{_number(version)}-{_number(attempt)}.json"

    @staticmethod
    def baselines(lineage: int) -> str:
        return f"baselines/{_number(lineage)}/"

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
