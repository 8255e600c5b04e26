"""How much time and memory does a trainer need to read a target of 229 billion parameters?

Writes a repository in the layout of MiniMax-M2.1 (tests/assets/sparse_target.py): all names, types and sizes of its
tensors, and zeros for weights, which take no room on the disk. A new process for each run then reads the target as a
trainer does, and touches every page of the tensors that it keeps.

The pages come from the kernel and not from a disk, so the seconds leave out the time of a real disk or of the hub.

Prints a row per run. Needs a CPU, 4 GB of memory, and a file system with sparse files.
"""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final
from unittest import mock

from tests.assets.sparse_target import SparseTarget, write_sparse_target
from tests.bench.bench_command import bench_parser, measuring, peak_resident_mebibytes
from tests.bench.markdown import markdown_table

if TYPE_CHECKING:
    from torch import Tensor

    from aurora_runtime.training.target.target_model import TargetModel

MODULE: Final = "tests.bench.large_target"
HEAD: Final = (
    *("Run", "Reading, s", "Its CPU s", "Touching every page, s", "Its CPU s", "Memory before, GB"),
    *("Peak while reading, GB", "Peak after touching, GB"),
)
PAGE: Final = mmap.PAGESIZE


def main() -> None:
    parser = bench_parser(MODULE, __doc__)
    parser.add_argument("--runs", type=int, default=3, help="processes that read the target, one after another")
    parser.add_argument("--read", type=Path, metavar="FOLDER", help="read the target in FOLDER once, and print figures")
    options = parser.parse_args()
    if options.read:
        print(json.dumps(asdict(read_once(options.read))))
        return
    with measuring(MODULE) as measurement:
        target, folder = SparseTarget(), measurement.folder
        index = write_sparse_target(target, folder)
        runs = [run(folder) for _ in range(options.runs)]
        read = runs[0].tensors
        files = {index[name] for name in read}
        fetched = sum((folder / file).stat().st_size for file in files)
        others = sum(file.stat().st_size for file in folder.glob("*.json"))
    stored = sum(tensor.size_bytes for tensor in target.tensors())
    print(f"{measurement.origin}\n")
    print(f"stored: {len(index):,} tensors, {stored / 1e9:.1f} GB, in {len(set(index.values()))} files")
    print(f"read: {len(read)} tensors, {sum(read.values()) / 1e9:.2f} GB, and {others / 1e6:.1f} MB of JSON")
    print(f"a hub would send: {len(files)} files, {fetched / 1e9:.2f} GB, and the JSON\n")
    print(markdown_table(HEAD, [[number, *figures.cells()] for number, figures in enumerate(runs, 1)]))


@dataclass(frozen=True)
class Run:
    """The figures of one process.

    Attributes:
        tensors: name -> bytes of each tensor that was read.
        seconds: of reading and its CPU time, of touching and its CPU time.
        memory_mebibytes: the peak of resident memory, mapped pages included: before, after reading, and after touching.
    """

    tensors: dict[str, int]
    seconds: list[float]
    memory_mebibytes: list[float]

    def cells(self) -> list[str]:
        return [
            *(f"{value:.2f}" for value in self.seconds),
            *(f"{value * 2**20 / 1e9:.2f}" for value in self.memory_mebibytes),
        ]


def run(folder: Path) -> Run:
    """The figures of a new process that reads the target in ``folder``."""
    for file in folder.iterdir():
        forget(file)
    command = [sys.executable, "-m", MODULE, "--read", str(folder)]
    return Run(**json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def read_once(folder: Path) -> Run:
    """Read the target in ``folder`` in this process."""
    import torch

    from aurora_api.v1alpha1.target import TargetSpec
    from aurora_runtime.training.target.files import ModelFiles
    from aurora_runtime.training.target.target_model import load_target

    torch.set_num_threads(1)
    tensors, read_tensor = dict[str, int](), ModelFiles.tensor

    def counted(files: ModelFiles, name: str) -> Tensor:
        tensor = read_tensor(files, name)
        tensors[name] = tensor.nbytes
        return tensor

    memory, clocks = [peak_resident_mebibytes()], [(time.monotonic(), time.process_time())]
    with mock.patch.object(ModelFiles, "tensor", counted):
        target = load_target(TargetSpec(model=str(folder)))
    memory.append(peak_resident_mebibytes())
    clocks.append((time.monotonic(), time.process_time()))
    for tensor in kept_tensors(target):
        tensor.reshape(-1)[:: PAGE // tensor.element_size()].sum()
    memory.append(peak_resident_mebibytes())
    clocks.append((time.monotonic(), time.process_time()))
    seconds = [
        after - before for earlier, later in pairwise(clocks) for before, after in zip(earlier, later, strict=True)
    ]
    return Run(tensors, seconds, memory)


def kept_tensors(target: TargetModel) -> Iterator[Tensor]:
    yield from (target.embedding, target.head, target.norm)
    yield from target.last_layer.tensors.values()


def forget(file: Path) -> None:
    """Drop the pages of ``file`` from the kernel's page cache."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
