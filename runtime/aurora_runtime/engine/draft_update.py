"""Writes the request that names a draft file to the engine, and reads the engine's report of its draft. Pure.

SGLang takes ``[(name, tensor)]`` as pickle and reads it with an unpickler that admits tensor types only
(sglang/srt/utils/common.py:3144). Aurora always sends the same structure, the path and the digest of a file, so this
module writes the pickle opcodes itself and the agent needs no torch. Aurora never reads pickle.

SGLang answers ``/weights_checker`` with a checksum of each named parameter and buffer of the draft, for each
tensor-parallel rank. Our loader adds a buffer whose name holds the digest of the file (``vocabulary_plugin``). Without
a draft, as with NGRAM, SGLang calls an update a success and takes the version over. Its answer here is then empty.
"""

from __future__ import annotations

import base64
import hashlib
import json
import pickle
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

LOADER: Final = "aurora_runtime.engine.weight_loader.load_draft"
"""The loader's name, both at SGLang's start (``--custom-weight-loader``) and in an update (``load_format``)."""
PATH_TENSOR: Final = "aurora.path"
"""Name of the uint8 tensor that carries the path of a draft file to the loader."""
DIGEST_TENSOR: Final = "aurora.digest"
"""Name of the uint8 tensor that carries the SHA-256 of this file to the loader."""
DIGEST_BUFFER: Final = "aurora_draft_"
"""Start of the name of the buffer with which the engine reports the file that it loaded. The file's digest follows."""
IN_PARTS: Final = "0" * 64
"""The engine reports this instead of a digest while its draft may hold parts of two files."""
SHORT: Final = 12
"""Characters of a digest in messages."""


def _pickled_text(value: str) -> bytes:
    data = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def _pickled_entry(name: str, data: bytes) -> bytes:
    """The opcodes of ``(name, torch.ByteTensor([*data]))``."""
    numbers = b"".join(pickle.BININT1 + bytes([byte]) for byte in data)
    tensor = b"".join(
        [
            pickle.GLOBAL + b"torch\nByteTensor\n",
            *(pickle.EMPTY_LIST, pickle.MARK, numbers, pickle.APPENDS),
            *(pickle.TUPLE1, pickle.REDUCE),
        ]
    )
    return _pickled_text(name) + tensor + pickle.TUPLE2


def path_payload(path: Path, digest: str) -> str:
    """One entry of ``serialized_named_tensors``, which takes one entry per tensor-parallel rank.

    Base64 of a pickle (protocol 2) of ``[("aurora.path", torch.ByteTensor([*path])), ("aurora.digest", ...)]``, with
    the path in UTF-8.

    Args:
        digest: SHA-256 of the file, in hexadecimal.
    """
    entries = _pickled_entry(PATH_TENSOR, str(path).encode()) + _pickled_entry(DIGEST_TENSOR, bytes.fromhex(digest))
    whole = pickle.PROTO + b"\x02" + pickle.EMPTY_LIST + pickle.MARK + entries + pickle.APPENDS + pickle.STOP
    return base64.b64encode(whole).decode()


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
