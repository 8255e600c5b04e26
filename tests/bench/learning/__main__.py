"""How fast a draft learns, by recipe: the same recorded traffic, the same optimizer steps, several seeds.

Traffic are real requests to SmolLM2 and its answers, with the rounds that a draft of ours caused
(tests/assets/drafted.py). Acceptance length is simulated on held-out requests (chains of 3 drafts); CPU seconds, not
wall-clock time, are reported, because other work shares the machine.

    python -m tests.bench.learning [--traffic json docstrings] [--seeds 0 1 2] [--tokens 2000] [--only fifo replay]
                                   [--out DIR]

A run of one configuration and one seed takes about ten CPU seconds per 2,400 tokens, and recording the traffic some
minutes once; without ``--out`` only the table is
printed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path

import torch
from tests.assets.drafted import TRAFFIC, drafted_traces
from tests.bench.learning.configurations import CONFIGURATIONS
from tests.bench.learning.replay import Run, run
from tests.bench.learning.report import as_json, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traffic", nargs="+", choices=sorted(TRAFFIC), default=["json"])
    parser.add_argument("--requests", type=int, default=160, help="recorded requests, held-out ones included")
    parser.add_argument("--tokens", type=int, default=None, help="answer tokens of traffic per run (default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", choices=list(CONFIGURATIONS), default=list(CONFIGURATIONS))
    parser.add_argument("--out", type=Path, default=None, help="directory for learning.md and learning.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs: list[Run] = []
    for traffic in options.traffic:
        traces = drafted_traces(traffic, options.requests)
        for seed in options.seeds:
            for name in options.only:
                runs.append(run(traffic, traces, name, CONFIGURATIONS[name], seed, options.tokens))
                curve = " / ".join(f"{look.accept_length:.2f}" for look in runs[-1].looks)
                print(f"{traffic}, seed {seed}, {name}: {curve}", flush=True)
    print("\n" + table(runs))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        environment = {"torch": torch.__version__, "machine": platform.processor(), "load": os.getloadavg()}
        (options.out / "learning.json").write_text(json.dumps(as_json(runs, environment), indent=1))
        (options.out / "learning.md").write_text(table(runs) + "\n")


if __name__ == "__main__":
    main()
