"""What an engine reports of the draft that it holds: a checksum of the weights, and the file that they came from. Pure.

SGLang answers ``/weights_checker`` with a checksum of each named parameter and buffer of the draft, for each
tensor-parallel rank. Our loader adds a buffer whose name holds the digest of the file (``loaded_digest``). Without a
draft, as with NGRAM, SGLang calls an update a success and takes the version over. Its answer here is then empty.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Final

from aurora_runtime.engine.path_payload import DIGEST_BUFFER, IN_PARTS

SHORT: Final = 12
"""Characters of a digest in messages."""


@dataclass(frozen=True)
class DraftReport:
    """The report of one engine.

    Attributes:
        checksum: one digest over the checksums of the weights and of the map on every rank, in the order of ranks. It
            is comparable within one engine start only.
        digests: for each rank the SHA-256 of the file that it holds. Empty for a rank that holds the draft that the
            engine started with, and ``IN_PARTS`` for one whose draft is not whole.
    """

    checksum: str
    digests: tuple[str, ...]

    def is_of(self, digest: str) -> bool:
        """Whether every rank holds the whole file with this digest."""
        return set(self.digests) == {digest}

    def rules_out(self, digest: str) -> bool:
        """Whether no rank may hold any part of the file with this digest."""
        return digest not in self.digests and IN_PARTS not in self.digests

    @property
    def is_of_start(self) -> bool:
        """Whether every rank still holds the draft that the engine started with."""
        return not any(self.digests)

    def __str__(self) -> str:
        words = {"": "of its start", IN_PARTS: "in parts"}
        return " and ".join(dict.fromkeys(words.get(digest, digest[:SHORT]) for digest in self.digests))


def draft_report(answer: Any) -> DraftReport:
    """Read SGLang's answer. Raises :class:`ValueError` when it has no weights of a draft.

    SGLang's own ``per_engine_checksum`` is not used, because SGLang returns one even when there is no draft.
    """
    try:
        checksums = [dict(rank["checksums"]) for rank in answer["ranks"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError("no checksums in the answer") from error
    digests = tuple(_take_digest(of_rank) for of_rank in checksums)
    if not checksums or not all(checksums):
        raise ValueError("no draft weights in the answer")
    return DraftReport(hashlib.sha256(json.dumps(checksums, sort_keys=True).encode()).hexdigest(), digests)


def _take_digest(checksums: dict[str, str]) -> str:
    """Remove the digest's buffer, so that the checksum is of weights alone. SGLang prefixes each name with a role."""
    name = next((name for name in checksums if name.rpartition(".")[2].startswith(DIGEST_BUFFER)), None)
    if name is None:
        return ""
    del checksums[name]
    return name.rpartition(DIGEST_BUFFER)[2]
