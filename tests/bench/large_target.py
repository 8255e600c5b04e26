"""How long does a trainer take to read a target of 229 billion parameters, and how much memory?

Writes a repository in the layout of MiniMax-M2.1 (tests/assets/sparse_target.py): all names, types and sizes of its
tensors, and zeros for weights, which take no room on the disk. A new process for each run then reads the target as a
trainer does, and touches every page of the tensors that it keeps.

The pages come from the kernel and not from a disk, so the seconds leave out the time of a real disk or of the hub. The
bytes do not depend on that: they are the pages of the repository's files that the kernel holds after the run.

Prints a row per run. Needs a CPU, 4 GB of memory, and a file system with sparse files.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.assets.sparse_target import SparseTarget, write_sparse_target
from tests.bench.bench_command import bench_parser, measuring
from tests.bench.markdown import markdown_table

if TYPE_CHECKING:
    from torch import Tensor

    from aurora_runtime.training.target.target_model import TargetModel

MODULE: Final = "tests.bench.large_target"
HEAD: Final = (
    *("Run", "Reading, s", "Its CPU s", "Touching every page, s", "Its CPU s", "Memory before, GB"),
    *("Peak while reading, GB", "Peak after touching, GB", "Read of the files, GB", "Files touched"),
)
PAGE: Final = mmap.PAGESIZE


def main() -> None:
    parser = bench_parser(MODULE, __doc__)
    parser.add_argument("--runs", type=int, default=3, help="processes that read the target, one after another")
    parser.add_argument("--read", type=Path, metavar="FOLDER", help="read the target in FOLDER once, and print figures")
    options = parser.parse_args()
    if options.read:
        print(json.dumps(read_once(options.read)))
        return
    with measuring(MODULE) as measurement:
        target, folder = SparseTarget(), measurement.folder
        index = write_sparse_target(target, folder)
        rows = [[number, *run(folder)] for number in range(1, options.runs + 1)]
    stored = sum(tensor.size_bytes for tensor in target.tensors())
    print(f"{measurement.origin}\n")
    print(f"{len(index):,} tensors, {stored / 1e9:.1f} GB, in {len(set(index.values()))} files\n")
    print(markdown_table(HEAD, rows))


def run(folder: Path) -> list[str]:
    """The cells of one run."""
    for file in folder.iterdir():
        forget(file)
    command = [sys.executable, "-m", MODULE, "--read", str(folder)]
    figures = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    pages = [bytes_in_page_cache(file) for file in folder.iterdir()]
    seconds = [f"{value:.2f}" for value in figures["seconds"]]
    memory = [f"{value / 1e9:.2f}" for value in figures["memory_bytes"]]
    return [*seconds, *memory, f"{sum(pages) / 1e9:.2f}", f"{sum(map(bool, pages))} of {len(pages)}"]


def read_once(folder: Path) -> dict[str, list[float]]:
    """Read the target in ``folder`` in this process. Returns the figures of a row in the order of :data:`HEAD`."""
    import torch

    from aurora_api.v1alpha1.target import TargetSpec
    from aurora_runtime.training.target.target_model import load_target

    torch.set_num_threads(1)
    memory, clocks = [float(peak_memory_bytes())], [(time.monotonic(), time.process_time())]
    target = load_target(TargetSpec(model=str(folder)))
    memory.append(peak_memory_bytes())
    clocks.append((time.monotonic(), time.process_time()))
    for tensor in kept_tensors(target):
        tensor.reshape(-1)[:: PAGE // tensor.element_size()].sum()
    memory.append(peak_memory_bytes())
    clocks.append((time.monotonic(), time.process_time()))
    seconds = [
        after - before for earlier, later in pairwise(clocks) for before, after in zip(earlier, later, strict=True)
    ]
    return {"seconds": seconds, "memory_bytes": memory}


def kept_tensors(target: TargetModel) -> Iterator[Tensor]:
    yield from (target.embedding, target.head, target.norm)
    yield from target.last_layer.tensors.values()


def peak_memory_bytes() -> int:
    """The largest resident memory of this process so far, mapped pages of files included."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def forget(file: Path) -> None:
    """Drop the pages of ``file`` from the kernel's page cache."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def bytes_in_page_cache(file: Path) -> int:
    """How much of ``file`` the kernel holds in memory."""
    libc = ctypes.CDLL(None, use_errno=True)
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        pages = (ctypes.c_ubyte * -(-len(mapped) // PAGE))()
        start = ctypes.c_char.from_buffer(mapped)
        failed = libc.mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(len(mapped)), pages)
        del start  # the mapping cannot be closed while it is referred to
    if failed:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(file))
    return sum(page & 1 for page in pages) * PAGE


if __name__ == "__main__":
    main()
