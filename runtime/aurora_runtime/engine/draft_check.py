"""Is this file a draft of this lineage? Checked before the engine sees it, because an error there ends the engine.

Invariant: names, shapes and dtypes are the lineage's, the vocabulary map names target tokens, each once, and every
weight is finite. Reads safetensors by hand: the format is a length, a JSON header and raw bytes, and bfloat16 has no
numpy dtype.
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

from aurora_protocol.draft_records import Lineage, TensorSpec
from aurora_runtime.errors import DraftRefused

WEIGHTS: Final = "model.safetensors"
"""The weights' file in a draft's folder."""
HEADER_LIMIT: Final = 16 << 20
CHUNK: Final = 8 << 20
WIDTHS: Final = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
EXPONENTS: Final = {"F32": ("<u4", 0x7F800000), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80)}
"""How to read a float type as integers, and its exponent's bits: all set means infinite or not a number."""
VOCABULARY_MAP: Final = "d2t"
INVERSE_MAP: Final = "t2d"
MAP_TYPES: Final = {VOCABULARY_MAP: "I64", INVERSE_MAP: "BOOL"}


@dataclass(frozen=True)
class Entry:
    """One tensor in the file: its spec, and its bytes [begin, end) after the header."""

    spec: TensorSpec
    begin: int
    end: int


def read_header(file: BinaryIO, size: int) -> tuple[dict[str, Entry], int]:
    """Tensors of a safetensors file of ``size`` bytes and where their data begin; raises :class:`DraftRefused`."""
    start = file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 0 < length <= min(HEADER_LIMIT, size - 8):
        raise DraftRefused("not a safetensors file: its header does not fit")
    try:
        header = json.loads(file.read(length))
        entries = {name: _entry(value) for name, value in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DraftRefused("not a safetensors file: its header cannot be read") from error
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].begin):
        width = WIDTHS.get(entry.spec.dtype)
        if width is None or entry.begin != end or entry.end - entry.begin != width * prod(entry.spec.shape):
            raise DraftRefused(f"tensor {name}: its bytes are not where the header says")
        end = entry.end
    if end != size - 8 - length:
        raise DraftRefused("the file is truncated, or longer than its header says")
    return entries, 8 + length


def _entry(value: Any) -> Entry:
    begin, end = value["data_offsets"]
    shape = tuple(int(n) for n in value["shape"])
    return Entry(TensorSpec(shape=shape, dtype=str(value["dtype"])), int(begin), int(end))


def check_draft(path: Path, lineage: Lineage) -> None:
    """Raise :class:`DraftRefused` unless ``path`` may be loaded into an engine of this lineage."""
    with path.open("rb") as file:
        entries, offset = read_header(file, path.stat().st_size)
        _same_tensors({name: entry.spec for name, entry in entries.items()}, lineage.tensors)
        for name, entry in entries.items():
            file.seek(offset + entry.begin)
            if entry.spec.dtype in EXPONENTS and not _finite(file, entry):
                raise DraftRefused(f"tensor {name} holds values that are not finite")
        _map(file, offset, entries, lineage.target.vocab_size)


def _map(file: BinaryIO, offset: int, entries: Mapping[str, Entry], vocab: int) -> None:
    """Raise :class:`DraftRefused` unless ``d2t`` and ``t2d`` name the same target tokens, each once, in ascending
    order: an id outside the target's vocabulary would end the engine, one in another place speak for a wrong token."""
    found = {}
    for name, kind in (VOCABULARY_MAP, "<i8"), (INVERSE_MAP, "?"):
        entry = entries[name]
        if entry.spec.dtype != MAP_TYPES[name]:
            raise DraftRefused(f"tensor {name}: {entry.spec.dtype}, expected {MAP_TYPES[name]}")
        file.seek(offset + entry.begin)
        found[name] = np.frombuffer(file.read(entry.end - entry.begin), dtype=kind)
    offsets, reachable = found[VOCABULARY_MAP], found[INVERSE_MAP]
    ids = offsets + np.arange(offsets.size)
    if not (ids.size and ids[0] >= 0 and ids[-1] < vocab and bool(np.all(np.diff(ids) > 0))):
        raise DraftRefused(f"d2t does not name target tokens below {vocab}, each once, in ascending order")
    if reachable.size != vocab or not np.array_equal(np.flatnonzero(reachable), ids):
        raise DraftRefused("t2d and d2t name different target tokens")


def _same_tensors(found: Mapping[str, TensorSpec], expected: Mapping[str, TensorSpec]) -> None:
    if missing := expected.keys() - found.keys():
        raise DraftRefused(f"tensors missing: {', '.join(sorted(missing))}")
    if unknown := found.keys() - expected.keys():
        raise DraftRefused(f"tensors unknown to the lineage: {', '.join(sorted(unknown))}")
    for name, spec in expected.items():
        if found[name] != spec:
            raise DraftRefused(f"tensor {name}: {_spell(found[name])}, expected {_spell(spec)}")


def _spell(spec: TensorSpec) -> str:
    return f"{spec.dtype} {list(spec.shape)}"


def _finite(file: BinaryIO, entry: Entry) -> bool:
    kind, mask = EXPONENTS[entry.spec.dtype]
    left = entry.end - entry.begin
    while left:
        chunk = file.read(min(CHUNK, left))
        left -= len(chunk)
        bits = np.frombuffer(chunk, dtype=kind)
        if bool(np.any((bits & mask) == mask)):
            return False
    return True
