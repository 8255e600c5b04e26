"""Attack the readers with many mutations: ``python -m tests.fuzz --mutations 10000``.

The exit code is 0 when no reader failed. ``--seed`` repeats a run.
"""

from __future__ import annotations

import argparse
import logging
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

import torch

from tests.fuzz.fuzzed_store import FuzzedStore

MAX_FAILURES_SHOWN = 20


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.fuzz", description="Attack the readers of the store with mutations.")
    parser.add_argument("--mutations", type=int, default=10_000, help="how many (default: 10000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first mutation (default: 0)")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    failures, began = [], time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        store = FuzzedStore(Path(folder))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for seed in range(options.seed, options.seed + options.mutations):
            try:
                store.attack(random.Random(seed))  # noqa: S311 - mutations, no secrets
            except AssertionError as error:
                failures.append(f"seed {seed}: {error}")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"{options.mutations} mutations in {time.monotonic() - began:.0f} s: {len(failures)} failures")
    print(f"the peak of the memory grew by {grown / 1024:.0f} MiB")
    print("\n".join(failures[:MAX_FAILURES_SHOWN]))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
