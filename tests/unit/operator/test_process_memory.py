"""A process that was set up keeps few arenas, and the collector leaves imported modules alone."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from pathlib import Path

import pytest

from aurora_operator.process_memory import ARENAS

SCRIPT = """
import ctypes, gc, json, sys, threading, zlib
from aurora_operator.process_memory import keep_memory_small

if sys.argv[2] == "set up":
    keep_memory_small()
together = threading.Barrier(12)

def work():
    held = [zlib.compressobj() for _ in range(4)]
    together.wait(30)

threads = [threading.Thread(target=work) for _ in range(12)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
file = libc.fopen(sys.argv[1].encode(), b"w")
libc.malloc_info(0, ctypes.c_void_p(file))
libc.fclose(ctypes.c_void_p(file))
print(json.dumps({"arenas": open(sys.argv[1]).read().count("<heap nr="), "frozen": gc.get_freeze_count()}))
"""


def run(tmp_path: Path, set_up: str) -> dict[str, int]:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "malloc.xml"), set_up]
    found: dict[str, int] = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)
    return found


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="this C library has no arenas")
def test_threads_share_few_arenas(tmp_path: Path) -> None:
    assert run(tmp_path, "as it is")["arenas"] > ARENAS, "the test sees arenas"
    assert run(tmp_path, "set up")["arenas"] <= ARENAS


def test_the_collector_leaves_imported_modules_alone(tmp_path: Path) -> None:
    assert run(tmp_path, "set up")["frozen"] > 1000
