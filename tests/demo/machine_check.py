"""What keeps this machine from running the demo, found before anything is installed or built.

Only the standard library is imported, because start.py runs before the packages are installed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from tests.assets.cache import cache_root
from tests.cluster.local.cluster import LocalCluster
from tests.cluster.local.layout import state_root
from tests.demo.stages import CLUSTER, STOP_CLUSTER

GIB = 1 << 30
MIN_MEMORY_GIB = 15
"""Engines, trainer and validator take up to 17 GiB at a time (docs/results/demo.md), a part of which they share."""
FIRST_RUN_GIB = 20
"""Cache, images and sources of a first run, with room for the build's own files."""
LATER_RUN_GIB = 6


def obstacles(environment: Mapping[str, str]) -> list[str]:
    """Why the demo cannot run here, in one sentence each. Empty if nothing is in the way."""
    found = []
    if environment.get("CLUSTER", "local") not in ("", "local"):
        found.append(
            "the demo runs on a cluster of its own only, because pods mount files of this machine: unset CLUSTER"
        )
    if LocalCluster(CLUSTER).sandbox.holder_pid() is not None:
        found.append(f"the cluster of an earlier demo runs, with a draft that has learned: stop it with {STOP_CLUSTER}")
    memory_gib = _memory_bytes() / GIB
    if memory_gib < MIN_MEMORY_GIB:
        found.append(f"the demo needs a machine with 24 GB of memory; this one has {memory_gib:.0f} GiB")
    needed_gib = LATER_RUN_GIB if (state_root() / CLUSTER).exists() else FIRST_RUN_GIB
    for folder in (cache_root(), state_root()):
        free_gib = shutil.disk_usage(_existing(folder)).free / GIB
        if free_gib < needed_gib:
            found.append(f"the demo needs {needed_gib} GiB of free disk for {folder}; there are {free_gib:.0f} GiB")
    return found


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _existing(folder: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    return next(one for one in (folder, *folder.parents) if one.exists())
