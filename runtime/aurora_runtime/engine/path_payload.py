"""Writes the body of SGLang's tensor update without torch: the path and the digest of a draft, for our loader.

SGLang takes ``[(name, tensor)]`` as pickle and reads it with an unpickler that admits tensor types only
(sglang/srt/utils/common.py:3144). Aurora always sends the same structure, so this module writes the pickle opcodes
itself and the agent needs no torch. Aurora sends pickle only because SGLang's API asks for it, and never reads pickle.
"""

from __future__ import annotations

import base64
import pickle
import struct
from pathlib import Path
from typing import Final

LOADER: Final = "aurora_runtime.engine.weight_loader.load_draft"
"""The loader's name, both at SGLang's start (``--custom-weight-loader``) and in an update (``load_format``)."""
PATH_TENSOR: Final = "aurora.path"
"""Name of the uint8 tensor that carries the path of a draft file to the loader."""
DIGEST_TENSOR: Final = "aurora.digest"
"""Name of the uint8 tensor that carries the SHA-256 of this file to the loader."""
DIGEST_BUFFER: Final = "aurora_draft_"
"""Start of the name of the buffer with which the engine reports the file that it loaded. The file's digest follows."""
IN_PARTS: Final = "0" * 64
"""What the engine reports instead of a digest while its draft may hold parts of two files."""


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
