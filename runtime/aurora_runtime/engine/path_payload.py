"""Writes the body of SGLang's tensor update without torch: a tensor that holds the path of a draft, for our loader.

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


def _pickled_text(value: str) -> bytes:
    data = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def path_payload(path: Path) -> str:
    """One entry of ``serialized_named_tensors``, which takes one entry per tensor-parallel rank.

    Base64 of a pickle (protocol 2) of ``[("aurora.path", torch.ByteTensor([*path]))]``, the path in UTF-8.
    """
    numbers = b"".join(pickle.BININT1 + bytes([byte]) for byte in str(path).encode())
    tensor = b"".join(
        [
            pickle.GLOBAL + b"torch\nByteTensor\n",
            *(pickle.EMPTY_LIST, pickle.MARK, numbers, pickle.APPENDS),
            *(pickle.TUPLE1, pickle.REDUCE),
        ]
    )
    entry = _pickled_text(PATH_TENSOR) + tensor + pickle.TUPLE2
    whole = pickle.PROTO + b"\x02" + pickle.EMPTY_LIST + pickle.MARK + entry + pickle.APPENDS + pickle.STOP
    return base64.b64encode(whole).decode()
