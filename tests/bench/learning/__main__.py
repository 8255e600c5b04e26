"""How fast a draft learns, by recipe: the same recorded traffic, at matched optimizer steps and at matched traffic.

Traffic are real requests to SmolLM2 and its answers, with the rounds that a draft of ours caused
(tests/assets/traces). Acceptance length is simulated on held-out requests (chains of 3 drafts); CPU seconds, not
wall-clock time, are reported, because other work shares the machine.

    python -m tests.bench.learning [--traffic json docstrings] [--match steps traffic] [--seeds 0 1 2] [--tokens 2400]
                                   [--only fifo replay] [--out DIR]

A run of one configuration and one seed takes about ten CPU seconds per 2,400 tokens and as many for the looks, and
recording the traffic some minutes once. With ``--out`` every run is kept at once in DIR/learning.json, and one that is
there is not made again: a comparison may be made in parts. DIR then has learning.md and learning.svg of all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tests.assets.traces.drafted import MESSAGES_BY_DOMAIN
from tests.bench.learning.configurations import CONFIGURATIONS
from tests.bench.learning.matching import Match
from tests.bench.learning.plot import plot
from tests.bench.learning.recorded import recorded
from tests.bench.learning.replay import LOOKS, Run, run
from tests.bench.learning.report import as_json, from_json, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traffic", nargs="+", choices=sorted(MESSAGES_BY_DOMAIN), default=["json"])
    parser.add_argument("--match", nargs="+", choices=list(Match), default=list(Match), help="what is held equal")
    parser.add_argument("--requests", type=int, default=160, help="recorded requests, held-out ones included")
    parser.add_argument("--tokens", type=int, default=None, help="answer tokens of traffic per run (default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=list(CONFIGURATIONS), default=list(CONFIGURATIONS))
    parser.add_argument("--out", type=Path, default=None, help="directory for learning.md, .json and .svg")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = {"requests": options.requests, "tokens": options.tokens, "looks": LOOKS}
    runs = _kept(options.out, settings)
    made = {(r.traffic, r.match, r.configuration, r.seed) for r in runs}
    shapes = dict.fromkeys(CONFIGURATIONS[name].shape for name in options.only)
    repeating = {}
    for name in dict.fromkeys([*options.traffic, *(r.traffic for r in runs)]):
        traffic = recorded(name, options.requests, shapes)
        repeating[name] = traffic.distinct_4grams
        for match in map(Match, options.match if name in options.traffic else ()):
            for seed in options.seeds:
                for row in options.only:
                    if (name, match, row, seed) in made or not CONFIGURATIONS[row].differs(match):
                        continue
                    runs.append(run(traffic, row, CONFIGURATIONS[row], match, seed, options.tokens))
                    curve = " / ".join(f"{look.accept_length:.2f}" for look in runs[-1].looks)
                    print(f"{name}, matched {match}, seed {seed}, {row}: {curve}", flush=True)
                    _keep(options.out, runs, settings)
    runs.sort(key=lambda r: (r.traffic, r.match, list(CONFIGURATIONS).index(r.configuration), r.seed))
    print("\n" + table(runs, repeating))
    if options.out:
        (options.out / "learning.md").write_text(table(runs, repeating) + "\n")
        (options.out / "learning.svg").write_text(plot(runs))


def _kept(out: Path | None, settings: Mapping[str, Any]) -> list[Run]:
    """What ``out`` holds already; ends when that was measured otherwise."""
    if out is None or not (out / "learning.json").exists():
        return []
    data = json.loads((out / "learning.json").read_text())
    if data["settings"] != settings:
        sys.exit(f"{out} holds runs with {data['settings']}, not {dict(settings)}")
    return from_json(data)


def _keep(out: Path | None, runs: list[Run], settings: Mapping[str, Any]) -> None:
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    environment = {"torch": torch.__version__, "machine": platform.processor(), "load": os.getloadavg()}
    part = out / "learning.json.part"
    part.write_text(json.dumps({"settings": dict(settings), **as_json(runs, environment)}, indent=1))
    part.replace(out / "learning.json")


if __name__ == "__main__":
    main()
