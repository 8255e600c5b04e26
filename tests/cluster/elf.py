"""Which shared libraries a program needs, read from the files themselves.

ldd would run each file's own loader; reading the dynamic section is quicker for hundreds of extension modules and also
works for a file that this machine cannot load.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.cluster.command import run

_INTERPRETER, _DYNAMIC, _LOAD = 3, 2, 1
_NEEDED, _STRTAB, _RPATH, _RUNPATH = 1, 5, 15, 29


@dataclass(frozen=True)
class Dynamic:
    """What one ELF file says it needs: its loader, library names, and where to look before the usual places."""

    interpreter: str | None
    needed: tuple[str, ...]
    search: tuple[str, ...]


def read(path: Path) -> Dynamic | None:
    """The dynamic part of a 64-bit little-endian ELF file, or None for any other file."""
    with path.open("rb") as file:
        if file.read(6) != b"\x7fELF\x02\x01":
            return None
        file.seek(0)
        data = file.read()
    offset, size, count = struct.unpack_from("<Q", data, 32)[0], *struct.unpack_from("<HH", data, 54)
    segments = [struct.unpack_from("<IIQQQQQQ", data, offset + index * size) for index in range(count)]
    interpreter = None
    entries: list[tuple[int, int]] = []
    for kind, _, start, _, _, length, _, _ in segments:
        if kind == _INTERPRETER:
            interpreter = data[start : start + length].rstrip(b"\0").decode()
        elif kind == _DYNAMIC:
            entries = list(struct.iter_unpack("<qQ", data[start : start + length - length % 16]))

    def file_offset(address: int) -> int:
        for kind, _, start, virtual, _, length, _, _ in segments:
            if kind == _LOAD and virtual <= address < virtual + length:
                return int(address - virtual + start)
        raise ValueError(f"{path}: address {address:#x} is in no segment")

    values = dict(entries)
    if _STRTAB not in values:
        return Dynamic(interpreter, (), ())
    strings = file_offset(values[_STRTAB])

    def text(index: int) -> str:
        return data[strings + index : data.index(b"\0", strings + index)].decode()

    search = text(values[_RUNPATH]) if _RUNPATH in values else text(values[_RPATH]) if _RPATH in values else ""
    names = tuple(text(value) for tag, value in entries if tag == _NEEDED)
    return Dynamic(interpreter, names, tuple(part for part in search.split(":") if part))


@cache
def _system_libraries() -> dict[str, Path]:
    """name -> path, of the loader's own cache. The first of several is the one that the loader takes."""
    found: dict[str, Path] = {}
    machine = {"x86_64": "x86-64", "aarch64": "AArch64"}.get(os.uname().machine, "libc6")
    for name, abi, path in re.findall(r"^\s+(\S+) \((.*?)\) => (\S+)$", run("/sbin/ldconfig", "-p"), re.MULTILINE):
        if machine in abi:
            found.setdefault(name, Path(path))
    return found


def library(name: str) -> Path | None:
    """A library of the system by its name, for what programs load by themselves and so do not list."""
    return _system_libraries().get(name)


def closure(files: Iterable[Path]) -> set[Path]:
    """Every loader and library that the ELF files among `files` need, found as the loader would find it.

    A library that is found nowhere is left out: extension modules name optional ones, such as a GPU driver's.
    """
    result: set[Path] = set()
    waiting = [path for path in files if path.suffix == ".so" or ".so." in path.name or os.access(path, os.X_OK)]
    while waiting:
        path = waiting.pop()
        dynamic = read(path)
        if dynamic is None:
            continue
        wanted = [Path(dynamic.interpreter)] if dynamic.interpreter else []
        origin = str(path.resolve().parent)
        places = [re.sub(r"\$\{?ORIGIN\}?", origin, place) for place in dynamic.search]
        for name in dynamic.needed:
            local = next((Path(place, name) for place in places if Path(place, name).exists()), None)
            found = local or _system_libraries().get(name)
            if found is not None:
                wanted.append(found)
        new = {Path(os.path.normpath(library)) for library in wanted} - result
        result |= new
        waiting += new
    return result
