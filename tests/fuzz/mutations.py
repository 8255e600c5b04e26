"""Mutates JSON records, safetensors files and raw bytes. The same generator gives the same mutation."""

from __future__ import annotations

import copy
import json
import random
import struct
from typing import Any

VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1,
    99_999_999,
    1 << 31,
    1 << 63,
    10**30,
    0.5,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "../../json.py",
    "/etc/passwd",
    "a\nb",
    "\x00",
    "9" * 5000,
    "x" * 40_000,
    (1 << 63) - 1,
    "0" * 64,
    [],
    {},
    [[[]]],
    {"a": {"b": 1}},
    "2026-13-01T00:00:00Z",
    "0001-01-01T00:00:00+23:59",
)
BYTES = (b"", b"\xff", b"[" * 50_000, b"{}", b"null", b'{"a":' * 20_000, bytes(64), b"\xff" * 8)


def mutated_json(random_: random.Random, data: bytes) -> bytes:
    """One to three changes of values, names or members. The text stays JSON, apart from NaN and infinity."""
    value = json.loads(data)
    for _ in range(random_.randint(1, 3)):
        value = _changed(random_, value)
    text = json.dumps(value)
    if random_.random() < 0.1:
        text = text.replace("{", '{"schemaVersion": 2, "schemaVersion": 1, ', 1)
    return text.encode()


def _changed(random_: random.Random, value: Any) -> Any:
    """``value`` with one change somewhere inside."""
    if isinstance(value, dict) and value and random_.random() < 0.85:
        changed, name = dict(value), random_.choice(list(value))
        kind = random_.random()
        if kind < 0.1:
            del changed[name]
        elif kind < 0.2:
            changed[random_.choice(("x", "auto_map", "__class__", name + "_"))] = random_.choice(VALUES)
        else:
            changed[name] = _changed(random_, value[name])
        return changed
    if isinstance(value, list) and value and random_.random() < 0.85:
        changed_list = list(value)
        place = random_.randrange(len(value))
        kind = random_.random()
        if kind < 0.15:
            del changed_list[place]
        elif kind < 0.3:
            changed_list.append(copy.deepcopy(value[place]))
        else:
            changed_list[place] = _changed(random_, value[place])
        return changed_list
    return random_.choice(VALUES)


def mutated_bytes(random_: random.Random, data: bytes) -> bytes:
    """Flipped bits, a cut, an insertion, a copied piece, or something else altogether."""
    kind = random_.randrange(6)
    place = random_.randrange(len(data) + 1)
    if kind == 0 and data:
        changed = bytearray(data)
        for _ in range(random_.randint(1, 8)):
            changed[random_.randrange(len(data))] ^= 1 << random_.randrange(8)
        return bytes(changed)
    if kind == 1:
        return data[:place]
    if kind == 2:
        return data[:place] + random_.randbytes(random_.randint(1, 64)) + data[place:]
    if kind == 3:
        return data[:place] + data[random_.randrange(len(data) + 1) :]
    if kind == 4:
        return random_.choice(BYTES)
    return data + random_.choice(BYTES)


def mutated_safetensors(random_: random.Random, data: bytes) -> bytes:
    """A change of the header, of the numbers, or of any bytes."""
    (length,) = struct.unpack("<Q", data[:8])
    header, body = data[8 : 8 + length], data[8 + length :]
    kind = random_.randrange(4)
    if kind == 0:
        header = mutated_json(random_, header)
    elif kind == 1:
        entries = json.loads(header)
        name = random_.choice([name for name in entries if name != "__metadata__"])
        first, last = entries[name]["data_offsets"]
        body = body[:first] + _other_numbers(random_, body[first:last]) + body[last:]
    elif kind == 2:
        body = mutated_bytes(random_, body)
    else:
        return mutated_bytes(random_, data)
    return struct.pack("<Q", len(header)) + header + body


def _other_numbers(random_: random.Random, data: bytes) -> bytes:
    """``data`` with a few extreme 64-bit, 32-bit or 16-bit numbers in it."""
    changed = bytearray(data)
    for _ in range(random_.randint(1, 3)):
        width, code = random_.choice(((8, "<q"), (4, "<i"), (2, "<h"), (1, "<b")))
        if len(data) < width:
            continue
        place = random_.randrange(len(data) // width) * width
        limit = 1 << (8 * width - 1)
        number = random_.choice((0, 1, -1, limit - 1, -limit, random_.randrange(-limit, limit)))
        changed[place : place + width] = struct.pack(code, number)
    return bytes(changed)
