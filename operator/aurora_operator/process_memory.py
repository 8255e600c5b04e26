"""Keeps what this process takes from the machine close to what it uses.

Why: glibc's malloc gives each busy thread an arena of its own, up to eight for each CPU, and keeps freed memory there.
Threads that call the API server and stores come and go, so freed memory would exceed used memory. The garbage collector
would visit every object of every imported module again and again.
"""

from __future__ import annotations

import ctypes
import gc

ARENAS = 2
"""Arenas of malloc. Python runs one thread at a time, so threads seldom wait for an arena."""
LARGE_BYTES = 128 << 10
"""A block from this size on goes back to the kernel once it is freed, such as the text of a list.

glibc starts with this value, and raises it with each freed block up to 32 MiB unless it is set.
"""
YOUNG_OBJECTS = 5000
"""New containers after which the collector looks for garbage among them. A reconcile makes a few thousand."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""Options of mallopt, from malloc.h."""


def keep_memory_small() -> None:
    """Set up malloc and the garbage collector. Called once, after the imports and before threads start."""
    _limit_malloc()
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])


def _limit_malloc() -> None:
    """Does nothing with a C library that has no mallopt, such as that of macOS."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in ((_ARENA_MAX, ARENAS), (_MMAP_THRESHOLD, LARGE_BYTES), (_TRIM_THRESHOLD, LARGE_BYTES)):
            mallopt(option, value)
