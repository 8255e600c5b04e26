"""The body of SGLang's tensor update, written without torch.

SGLang takes ``[(name, tensor)]`` as pickle, read by an unpickler that admits tensor types only
(sglang/srt/utils/common.py:3144). We send exactly one value of one fixed shape, so its opcodes are written here rather
than carrying torch into the sidecar. We only ever send pickle, because that API asks for it; none is read.
"""

from __future__ import annotations

import base64
import pickle
import struct

from aurora_runtime.serving.settings import PATH_TENSOR


def _text(value: str) -> bytes:
    data = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def path_pickle(path: str) -> bytes:
    """Pickle (protocol 2) of ``[("aurora.path", torch.ByteTensor([*path.encode()]))]``."""
    numbers = b"".join(pickle.BININT1 + bytes([byte]) for byte in path.encode())
    tensor = b"".join(
        [
            pickle.GLOBAL + b"torch\nByteTensor\n",
            *(pickle.EMPTY_LIST, pickle.MARK, numbers, pickle.APPENDS),
            *(pickle.TUPLE1, pickle.REDUCE),
        ]
    )
    entry = _text(PATH_TENSOR) + tensor + pickle.TUPLE2
    return pickle.PROTO + b"\x02" + pickle.EMPTY_LIST + pickle.MARK + entry + pickle.APPENDS + pickle.STOP


def path_payload(path: str) -> str:
    """:func:`path_pickle` as the base64 text that ``serialized_named_tensors`` takes, one per tensor-parallel rank."""
    return base64.b64encode(path_pickle(path)).decode()
