"""``python3 -m tests.demo.machine_check``: says why the demo cannot run here, before anything is installed or built.

Only the standard library is imported, because `make demo` runs this before the packages are installed.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from tests.assets.cache import cache_root
from tests.cluster.local.cluster import LocalCluster
from tests.cluster.local.layout import state_root

CLUSTER_NAME = os.environ.get("CLUSTER_NAME") or "demo"
STOP_CLUSTER = f".venv/bin/python -m tests.cluster --name {CLUSTER_NAME} down"
GIB = 1 << 30
MIN_MEMORY_GIB = 15
"""Engines, trainer and validator take up to 17 GiB at a time (docs/results/demo.md), a part of which they share."""
CACHE_GIB, IMAGES_GIB = 12, 6
"""Free disk for a first run: packages, programs and the build's own files, and the cluster's images."""
LATER_RUN_GIB = 2
"""Free disk for each of the two folders once they are filled."""


def obstacles() -> list[str]:
    """Why the demo cannot run here, in one sentence each. Empty if nothing is in the way."""
    found = []
    if LocalCluster(CLUSTER_NAME).sandbox.holder_pid() is not None:
        found.append(f"the cluster of another demo runs: wait for its end, or stop it with {STOP_CLUSTER}")
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    if memory_gib < MIN_MEMORY_GIB:
        found.append(f"the demo needs a machine with 24 GB of memory; this one has {memory_gib:.0f} GiB")
    return found + _disk_obstacles()


def _disk_obstacles() -> list[str]:
    """Too little free disk, for each file system that the demo fills."""
    cache, images = cache_root(), state_root() / CLUSTER_NAME
    needed = {
        cache: LATER_RUN_GIB if any(cache.glob("cluster/*/bin")) else CACHE_GIB,
        images: LATER_RUN_GIB if (images / "containerd").exists() else IMAGES_GIB,
    }
    found = []
    for device in {_existing(folder).stat().st_dev for folder in needed}:
        folders = [folder for folder in needed if _existing(folder).stat().st_dev == device]
        needed_gib, free_gib = sum(needed[one] for one in folders), shutil.disk_usage(_existing(folders[0])).free / GIB
        if free_gib < needed_gib:
            places = " and ".join(map(str, folders))
            found.append(f"the demo needs {needed_gib} GiB of free disk for {places}; there are {free_gib:.0f} GiB")
    return found


def _existing(folder: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    return next(one for one in (folder, *folder.parents) if one.exists())


def main() -> int:
    found = obstacles()
    print("\n".join(f"error: {one}" for one in found), end="\n" if found else "", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
