"""Finds the shared libraries that a program needs, by reading ELF files.

The alternative, ldd, runs each file's own loader. Reading the dynamic section is faster for hundreds of extension
modules, and also works for a file that this machine cannot load.
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

_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
"""Types of program headers, as elf.h names them."""
_DT_NEEDED, _DT_STRTAB, _DT_RPATH, _DT_RUNPATH = 1, 5, 15, 29
"""Tags of dynamic entries, as elf.h names them."""


@dataclass(frozen=True)
class DynamicSection:
    """An ELF file's loader, the names of its libraries, and the directories to search before the system's."""

    interpreter: str | None
    needed: tuple[str, ...]
    search_path: tuple[str, ...]


def read_dynamic_section(path: Path) -> DynamicSection | None:
    """The dynamic section of a 64-bit little-endian ELF file, or None for any other file."""
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
        if kind == _PT_INTERP:
            interpreter = data[start : start + length].rstrip(b"\0").decode()
        elif kind == _PT_DYNAMIC:
            entries = list(struct.iter_unpack("<qQ", data[start : start + length - length % 16]))

    def file_offset(address: int) -> int:
        for kind, _, start, virtual, _, length, _, _ in segments:
            if kind == _PT_LOAD and virtual <= address < virtual + length:
                return int(address - virtual + start)
        raise ValueError(f"{path}: no segment contains the address {address:#x}")

    values = dict(entries)
    if _DT_STRTAB not in values:
        return DynamicSection(interpreter, (), ())
    strings = file_offset(values[_DT_STRTAB])

    def string_at(index: int) -> str:
        return data[strings + index : data.index(b"\0", strings + index)].decode()

    search_path = ""
    if _DT_RUNPATH in values:
        search_path = string_at(values[_DT_RUNPATH])
    elif _DT_RPATH in values:
        search_path = string_at(values[_DT_RPATH])
    needed = tuple(string_at(value) for tag, value in entries if tag == _DT_NEEDED)
    return DynamicSection(interpreter, needed, tuple(part for part in search_path.split(":") if part))


@cache
def _system_libraries() -> dict[str, Path]:
    """name -> path, from the loader's cache. The first path of a name wins, as in the loader."""
    paths: dict[str, Path] = {}
    machine = {"x86_64": "x86-64", "aarch64": "AArch64"}.get(os.uname().machine, "libc6")
    for name, abi, path in re.findall(r"^\s+(\S+) \((.*?)\) => (\S+)$", run("/sbin/ldconfig", "-p"), re.MULTILINE):
        if machine in abi:
            paths.setdefault(name, Path(path))
    return paths


def system_library(name: str) -> Path | None:
    """The path of a system library, or None. For libraries that a program loads at run time without listing them."""
    return _system_libraries().get(name)


def required_libraries(files: Iterable[Path]) -> set[Path]:
    """Every loader and library that the ELF files among `files` need, directly or through other libraries.

    Libraries are searched as the loader searches them. A library that does not exist is left out: extension modules
    name optional ones, such as a GPU driver's.
    """
    result: set[Path] = set()
    unread = [path for path in files if path.suffix == ".so" or ".so." in path.name or os.access(path, os.X_OK)]
    while unread:
        path = unread.pop()
        dynamic = read_dynamic_section(path)
        if dynamic is None:
            continue
        required = [Path(dynamic.interpreter)] if dynamic.interpreter else []
        origin = str(path.resolve().parent)
        directories = [re.sub(r"\$\{?ORIGIN\}?", origin, directory) for directory in dynamic.search_path]
        for name in dynamic.needed:
            candidates = (Path(directory, name) for directory in directories)
            library = next((path for path in candidates if path.exists()), None) or _system_libraries().get(name)
            if library is not None:
                required.append(library)
        new = {Path(os.path.normpath(library)) for library in required} - result
        result |= new
        unread += new
    return result
