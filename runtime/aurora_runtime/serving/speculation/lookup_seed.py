"""The seed of a new pod's lookup: recent answers of the speculator, in a file that the agent writes for the engine.

Without a seed a new pod looks up in an empty index, while the other pods know the traffic. This module holds what both
sides agree on. It imports neither torch nor sglang, because the agent imports it.

Invariants:
- No seed holds the answer of a request that was held out. Candidates are measured on held-out prompts, and must not
  find their answers. (``aurora_runtime.conversations.may_share`` says the same of the running index.)
- A file that is damaged, too large or of another vocabulary seeds nothing. Proposals never decide what is answered.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from aurora_runtime.serving.speculation.lookup_index import LookupIndex

log = logging.getLogger(__name__)

MAX_SEED_TOKENS: Final = 1 << 17
"""Most tokens of a seed. The engine adds them to its index at its start, within about 40 ms."""
MAX_SEED_BYTES: Final = 8 * MAX_SEED_TOKENS + (1 << 16)


def encode_seed(texts: Sequence[ArrayLike]) -> bytes:
    """A seed's file: ``lengths [Q]`` and ``tokens [T]``, both int32, of ``Q`` texts with ``T`` tokens in all."""
    arrays = [np.asarray(text, dtype=np.int32) for text in texts]
    lengths = np.array([each.size for each in arrays], dtype=np.int32)
    return save({"lengths": lengths, "tokens": np.concatenate([np.zeros(0, dtype=np.int32), *arrays])})


def decode_seed(data: bytes, vocabulary_size: int) -> list[array[int]]:
    """The texts of a seed's file. Raises ValueError when the file is no seed for this vocabulary."""
    if len(data) > MAX_SEED_BYTES:
        raise ValueError(f"the seed has more than {MAX_SEED_BYTES} bytes")
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise ValueError(f"the seed is no safetensors file: {error}") from error
    lengths, tokens = _int32(tensors, "lengths"), _int32(tensors, "tokens")
    if tokens.size > MAX_SEED_TOKENS or lengths.size > MAX_SEED_TOKENS:
        raise ValueError(f"the seed has more than {MAX_SEED_TOKENS} tokens")
    if (lengths < 1).any() or int(lengths.sum(dtype=np.int64)) != tokens.size:
        raise ValueError("the seed's texts do not have its tokens")
    if ((tokens < 0) | (tokens >= vocabulary_size)).any():
        raise ValueError(f"the seed has tokens outside the vocabulary of {vocabulary_size}")
    ends = np.cumsum(lengths).tolist()
    return [array("q", tokens[end - length : end].tolist()) for length, end in zip(lengths.tolist(), ends, strict=True)]


def _int32(tensors: dict[str, NDArray[np.int32]], name: str) -> NDArray[np.int32]:
    tensor = tensors.get(name)
    if tensor is None or tensor.dtype != np.int32 or tensor.ndim != 1:
        raise ValueError(f"the seed has no list of int32 named {name}")
    return tensor


def read_seed(path: Path) -> bytes:
    """The bytes of a seed's file, at most ``MAX_SEED_BYTES + 1``. Empty when there is no file."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_SEED_BYTES + 1)
    except FileNotFoundError:
        return b""
    except OSError as error:
        log.warning("lookup starts without a seed: %s", error)
        return b""


def seed_index(index: LookupIndex, data: bytes, vocabulary_size: int) -> None:
    """Add the texts of a seed's file to an index. Bytes that are no seed add nothing."""
    if not data:
        return
    try:
        texts = decode_seed(data, vocabulary_size)
    except ValueError as error:
        log.warning("lookup starts without a seed: %s", error)
        return
    for text in texts:
        index.seed(text)
    log.info("lookup starts with %d recent answers", len(texts))
