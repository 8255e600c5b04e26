"""How fast does a draft learn, and which parts of the recipe matter?

Every configuration (tests/bench/learning/configurations.py) learns from the same recorded traffic: real requests to
SmolLM2 with its answers, and the verify rounds that one of our drafts caused (tests/assets/traces). Configurations are
compared at equal optimizer steps or at equal traffic. Acceptance length is simulated on held-out requests, with chains
of 3 draft tokens. The report gives CPU seconds, not wall-clock time, because other work shares the machine.

Prints one table per domain and matching.

A run of one configuration with one seed takes about ten CPU seconds per 2,400 answer tokens, and as many for its
evaluations. All rows with three seeds take more than an hour. Recording a domain takes some minutes, once. Needs a CPU
only.

With --out every run is saved at once in DIR/learning.json, and a saved run is not repeated, so a comparison can be made
in parts. DIR then also holds learning.md of all saved runs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from tests.assets.traces.drafted import MESSAGES_BY_DOMAIN
from tests.bench.bench_command import bench_parser
from tests.bench.learning.configurations import CONFIGURATIONS
from tests.bench.learning.matching import Match
from tests.bench.learning.recipe_report import as_json, from_json, table
from tests.bench.learning.recipe_run import EVALUATIONS, RecipeRun, RecordedTraffic, load_traffic, run_recipe


def _options() -> argparse.Namespace:
    parser = bench_parser("tests.bench.learning", __doc__)
    parser.add_argument(
        "--traffic", nargs="+", choices=sorted(MESSAGES_BY_DOMAIN), default=["json"], help="domains to learn from"
    )
    parser.add_argument(
        "--match",
        nargs="+",
        choices=list(Match),
        default=list(Match),
        help="quantity that is equal for all configurations: optimizer steps, or traffic",
    )
    parser.add_argument(
        "--requests", type=int, default=160, help="recorded requests per domain, held-out ones included"
    )
    parser.add_argument("--tokens", type=int, help="answer tokens of traffic per run (default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one run per configuration and seed")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=list(CONFIGURATIONS),
        default=list(CONFIGURATIONS),
        metavar="NAME",
        help=f"configurations to run (default: all of {'; '.join(CONFIGURATIONS)})",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="directory for learning.md and learning.json")
    return parser.parse_args()


def _missing_runs(
    options: argparse.Namespace, traffic: RecordedTraffic, saved: list[RecipeRun]
) -> Iterator[tuple[Match, int, str]]:
    """The matching, seed and configuration of every requested run on ``traffic`` that is not saved yet."""
    done = {(r.traffic, r.match, r.configuration, r.seed) for r in saved}
    for match in map(Match, options.match if traffic.name in options.traffic else ()):
        for seed in options.seeds:
            for name in options.only:
                if (traffic.name, match, name, seed) not in done and CONFIGURATIONS[name].is_comparable(match):
                    yield match, seed, name


def main() -> None:
    options = _options()
    torch.set_num_threads(1)
    settings = {"requests": options.requests, "tokens": options.tokens, "evaluations": EVALUATIONS}
    runs = _saved_runs(options.out, settings)
    distinct_4grams = {}
    for domain in dict.fromkeys([*options.traffic, *(r.traffic for r in runs)]):
        traffic = load_traffic(domain, options.requests)
        distinct_4grams[domain] = traffic.distinct_4grams
        for match, seed, name in list(_missing_runs(options, traffic, runs)):
            runs.append(run_recipe(traffic, name, CONFIGURATIONS[name], match, seed, options.tokens))
            lengths = " / ".join(f"{evaluation.acceptance_length:.2f}" for evaluation in runs[-1].evaluations)
            print(f"{domain}, matched {match}, seed {seed}, {name}: {lengths}", flush=True)
            _save_runs(options.out, runs, settings)
    runs.sort(key=lambda r: (r.traffic, r.match, list(CONFIGURATIONS).index(r.configuration), r.seed))
    print("\n" + table(runs, distinct_4grams))
    if options.out:
        (options.out / "learning.md").write_text(table(runs, distinct_4grams) + "\n")


def _saved_runs(out: Path | None, settings: Mapping[str, Any]) -> list[RecipeRun]:
    """The runs in ``out``. Exits when they were made with other settings."""
    if out is None or not (out / "learning.json").exists():
        return []
    data = json.loads((out / "learning.json").read_text())
    if data["settings"] != settings:
        sys.exit(f"{out} holds runs made with {data['settings']}, not {dict(settings)}: choose another --out")
    return from_json(data)


def _save_runs(out: Path | None, runs: list[RecipeRun], settings: Mapping[str, Any]) -> None:
    """Write all runs to ``out``. A crash leaves the previous file whole."""
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    environment = {"torch": torch.__version__, "machine": platform.processor(), "load": os.getloadavg()}
    part = out / "learning.json.part"
    part.write_text(json.dumps({"settings": dict(settings), **as_json(runs, environment)}, indent=1))
    part.replace(out / "learning.json")


if __name__ == "__main__":
    main()
