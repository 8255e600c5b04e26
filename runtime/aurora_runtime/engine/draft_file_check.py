"""Checks that a file is a draft of a lineage before an engine loads it. An error during the load would end the engine.

Invariants: a file that passes has the lineage's tensor names, shapes and dtypes. Its vocabulary map names target
tokens, each once. Every weight is finite.

The module parses safetensors itself, because numpy has no bfloat16. The format is a length, a JSON header and raw
bytes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from aurora_protocol.draft_records import CONFIG_FILE, WEIGHTS_FILE, Lineage, TensorSpec
from aurora_runtime.engine.draft_config import check_draft_config
from aurora_runtime.errors import DraftRefused

WEIGHTS: Final = WEIGHTS_FILE
"""Name of the file of weights in a draft's folder."""
MAX_HEADER_BYTES: Final = 16 << 20
READ_CHUNK_BYTES: Final = 8 << 20
DTYPE_BYTES: Final = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
EXPONENT_MASKS: Final = {"F32": ("<u4", 0x7F800000), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80)}
"""For each float dtype, the integer dtype to read it as, and its exponent bits. All bits set means infinite or NaN."""
VOCABULARY_MAP: Final = "d2t"
INVERSE_MAP: Final = "t2d"
MAP_DTYPES: Final = {VOCABULARY_MAP: "I64", INVERSE_MAP: "BOOL"}


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of the file: its spec, and where its bytes lie, [begin, end) after the header."""

    spec: TensorSpec
    begin: int
    end: int


def read_header(file: BinaryIO, size: int) -> tuple[dict[str, TensorEntry], int]:
    """The tensors of a safetensors file of ``size`` bytes and their data's offset; raises :class:`DraftRefused`."""
    start = file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 0 < length <= min(MAX_HEADER_BYTES, size - 8):
        raise DraftRefused("not a safetensors file: its header does not fit")
    try:
        header = json.loads(file.read(length))
        entries = {name: _parse_entry(value) for name, value in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DraftRefused("not a safetensors file: its header cannot be read") from error
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].begin):
        width = DTYPE_BYTES.get(entry.spec.dtype)
        if width is None or entry.begin != end or entry.end - entry.begin != width * prod(entry.spec.shape):
            raise DraftRefused(f"tensor {name}: its bytes are not where the header says")
        end = entry.end
    if end != size - 8 - length:
        raise DraftRefused("the file is truncated, or longer than its header says")
    return entries, 8 + length


def _parse_entry(value: Any) -> TensorEntry:
    begin, end = value["data_offsets"]
    shape = tuple(int(n) for n in value["shape"])
    return TensorEntry(TensorSpec(shape=shape, dtype=str(value["dtype"])), int(begin), int(end))


def max_weights_bytes(lineage: Lineage) -> int:
    """Largest file of weights that a draft of ``lineage`` may have."""
    tensors = (DTYPE_BYTES.get(spec.dtype, 8) * prod(spec.shape) for spec in lineage.tensors.values())
    return 8 + MAX_HEADER_BYTES + sum(tensors)


def check_draft(folder: Path, lineage: Lineage) -> None:
    """Raise :class:`DraftRefused` unless an engine of this lineage may start with, or load, the draft in ``folder``."""
    check_draft_config(folder / CONFIG_FILE, lineage)
    check_draft_file(folder / WEIGHTS, lineage)


def check_draft_file(path: Path, lineage: Lineage) -> None:
    """Raise :class:`DraftRefused` unless ``path`` may be loaded into an engine of this lineage."""
    with path.open("rb") as file:
        entries, offset = read_header(file, path.stat().st_size)
        _check_tensors({name: entry.spec for name, entry in entries.items()}, lineage.tensors)
        for name, entry in entries.items():
            file.seek(offset + entry.begin)
            if entry.spec.dtype in EXPONENT_MASKS and not _is_finite(file, entry):
                raise DraftRefused(f"tensor {name} holds values that are not finite")
        _check_map(file, offset, entries, lineage.target.vocab_size)


def _check_map(file: BinaryIO, offset: int, entries: Mapping[str, TensorEntry], vocab: int) -> None:
    """Raise :class:`DraftRefused` unless ``d2t`` and ``t2d`` name the same target tokens in ascending order.

    An id outside the target's vocabulary would end the engine. An id in another place would stand for a wrong token.
    """
    arrays = {}
    for name, kind in (VOCABULARY_MAP, "<i8"), (INVERSE_MAP, "?"):
        entry = entries[name]
        if entry.spec.dtype != MAP_DTYPES[name]:
            raise DraftRefused(f"tensor {name}: {entry.spec.dtype}, expected {MAP_DTYPES[name]}")
        file.seek(offset + entry.begin)
        arrays[name] = np.frombuffer(file.read(entry.end - entry.begin), dtype=kind)
    offsets, reachable = arrays[VOCABULARY_MAP], arrays[INVERSE_MAP]
    ids = offsets + np.arange(offsets.size)
    if not (ids.size and ids[0] >= 0 and ids[-1] < vocab and bool(np.all(np.diff(ids) > 0))):
        raise DraftRefused(f"d2t does not name target tokens below {vocab}, each once, in ascending order")
    if reachable.size != vocab or not np.array_equal(np.flatnonzero(reachable), ids):
        raise DraftRefused("t2d and d2t name different target tokens")


def _check_tensors(actual: Mapping[str, TensorSpec], expected: Mapping[str, TensorSpec]) -> None:
    if missing := expected.keys() - actual.keys():
        raise DraftRefused(f"tensors missing: {', '.join(sorted(missing))}")
    if unknown := actual.keys() - expected.keys():
        raise DraftRefused(f"tensors unknown to the lineage: {', '.join(sorted(unknown))}")
    for name, spec in expected.items():
        if actual[name] != spec:
            raise DraftRefused(f"tensor {name}: {_format_spec(actual[name])}, expected {_format_spec(spec)}")


def _format_spec(spec: TensorSpec) -> str:
    return f"{spec.dtype} {list(spec.shape)}"


def _is_finite(file: BinaryIO, entry: TensorEntry) -> bool:
    kind, mask = EXPONENT_MASKS[entry.spec.dtype]
    remaining = entry.end - entry.begin
    while remaining:
        chunk = file.read(min(READ_CHUNK_BYTES, remaining))
        remaining -= len(chunk)
        bits = np.frombuffer(chunk, dtype=kind)
        if bool(np.any((bits & mask) == mask)):
            return False
    return True
