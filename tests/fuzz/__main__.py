"""Attack the parts with many mutations: ``python -m tests.fuzz --mutations 10000``.

Parts: ``store`` (all readers of the runtime), ``operator`` (its reader of the store) and ``agent`` (its HTTP server). A
tenth of the mutations goes to the agent, whose attacks take longest. The exit code is 0 when no part failed. ``--seed``
repeats a run.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tests.fuzz.fuzzed_agent import attack_agents
from tests.fuzz.fuzzed_operator import FuzzedOperator
from tests.fuzz.fuzzed_store import FuzzedStore

MAX_FAILURES_SHOWN = 20


AGENT_SHARE = 10
"""One of this many mutations goes to the agent."""


def attack_store(seeds: range, on_failure: Callable[[str], None]) -> None:
    """All readers of the runtime."""
    with tempfile.TemporaryDirectory() as folder:
        _attack(FuzzedStore(Path(folder)).attack, seeds, on_failure)


def attack_operator(seeds: range, on_failure: Callable[[str], None]) -> None:
    """The operator's reader."""
    with tempfile.TemporaryDirectory() as folder:
        _attack(FuzzedOperator(FuzzedStore(Path(folder))).attack, seeds, on_failure)


def attack_agent(seeds: range, on_failure: Callable[[str], None]) -> None:
    """The agent's HTTP server."""
    asyncio.run(attack_agents(seeds[::AGENT_SHARE], on_failure))


def _attack(attack: Callable[[random.Random], None], seeds: range, on_failure: Callable[[str], None]) -> None:
    for seed in seeds:
        try:
            attack(random.Random(seed))  # noqa: S311 - mutations, no secrets
        except AssertionError as error:
            on_failure(f"seed {seed}: {error}")


PARTS = {"store": attack_store, "operator": attack_operator, "agent": attack_agent}


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.fuzz", description="Attack the parts of Aurora with mutations.")
    parser.add_argument("--mutations", type=int, default=10_000, help="how many (default: 10000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first mutation (default: 0)")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    seeds, failed = range(options.seed, options.seed + options.mutations), False
    for name, attack in PARTS.items():
        failures, began = list[str](), time.monotonic()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        attack(seeds, failures.append)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        count = len(seeds[::AGENT_SHARE]) if name == "agent" else len(seeds)
        seconds = time.monotonic() - began
        print(f"{name}: {count} mutations in {seconds:.0f} s: {len(failures)} failures", end="; ")
        print(f"the peak of the memory grew by {grown / 1024:.0f} MiB", flush=True)
        print("\n".join(failures[:MAX_FAILURES_SHOWN]), end="\n" if failures else "")
        failed = failed or bool(failures)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
