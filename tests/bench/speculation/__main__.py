"""How much slower than the best fixed arm is the speculation controller, and how long does a decision take?

Replays rounds under the controller and under every fixed arm: no speculation, lookup with a fixed width, the draft with
a fixed number of steps. Costs come from a table that looks like this machine's CPU, or like a GPU. The controller sees
noisy times. Results use true ones.

Prints, per cost table, traffic and concurrency, the best fixed arm, its speed over off, the controller's speed over the
best arm's, its worst stretch of 200 rounds against off, and the share of exploring rounds. Then prints the microseconds
of a decision (choose and observe together) by batch size, median [quartiles], and those of the lookup before it. Lookup
indexes each request's last token and searches its text, on the host, with the scope Request. ``--decisions`` prints
these only, within seconds.

Generated rounds have the statistics of docs/results/served-speedup.md. Takes about two minutes. Needs a CPU only.
"""

from __future__ import annotations

import os
import random
import time
from types import SimpleNamespace

from tests.bench.bench_command import bench_parser, commit, machine
from tests.bench.markdown import markdown_row, markdown_table, median_and_quartiles
from tests.bench.speculation.cost_tables import cpu_milliseconds, gpu_milliseconds
from tests.bench.speculation.generated_rounds import traffics
from tests.bench.speculation.regret import measure_regret, new_controller

from aurora_api.v1alpha1.draft import LookupScope
from aurora_runtime.engine.arms import Source
from aurora_runtime.engine.speculation_settings import LOOKUP_STEPS
from aurora_runtime.serving.speculation.lookup import LookupIndex, RequestTexts
from aurora_runtime.serving.speculation.rounds import Outcome, RequestOutlook

REQUESTS_AT_LEAST = 60
REQUESTS_PER_PLACE = 24
DECISIONS = 4000
"""Decisions that are timed for one request. Larger batches have as many requests in fewer decisions."""
LEAST_ROUNDS = 60
PROMPT_TOKENS = 500
VOCABULARY = 32_000
MACHINES = {"cpu": cpu_milliseconds, "gpu": gpu_milliseconds}
CONCURRENCIES = (1, 4, 16, 64)
SEED = 1
"""Of traffic, noise and exploration."""


def decision_microseconds(batch_size: int, rounds: int) -> list[float]:
    """The times of decisions and their observations, for a batch in which half of the requests have a lookup."""
    controller, rng, times = new_controller(), random.Random(5), list[float]()  # noqa: S311 - no secret
    for _ in range(rounds):
        outlooks = [
            RequestOutlook(f"r{i}", rng.choice((0, 2, 5, 9)) if i % 2 == 0 else 0, 11, True) for i in range(batch_size)
        ]
        begin = time.perf_counter()
        decision = controller.choose(outlooks)
        chosen = time.perf_counter()
        right = [0 if s is Source.NONE else min(decision.arm.steps, rng.choice((0, 1, 3, 7))) for s in decision.sources]
        took = 20.0 + 0.3 * decision.arm.steps * batch_size
        observing = time.perf_counter()
        controller.observe(Outcome(decision, outlooks, right, took))
        times.append(1e6 * (time.perf_counter() - observing + chosen - begin))
    return times


def lookup_microseconds(batch_size: int, rounds: int) -> list[float]:
    """The times of lookup for a batch whose requests got a token each: words that come back, and few long matches."""
    rng, times = random.Random(5), list[float]()  # noqa: S311 - no secret
    texts = RequestTexts(LookupIndex(LookupScope.REQUEST, 1 << 20, vocabulary_size=VOCABULARY))
    no_wish = SimpleNamespace(custom_params=None)
    reqs = [
        SimpleNamespace(rid=f"r{i}", origin_input_ids=words(rng, PROMPT_TOKENS), output_ids=[], sampling_params=no_wish)
        for i in range(batch_size)
    ]
    for number in range(rounds):
        for req in reqs:
            req.output_ids += words(rng, 1)
        begin = time.perf_counter()
        texts.proposals(reqs, [PROMPT_TOKENS + number] * batch_size, [()] * batch_size, LOOKUP_STEPS)
        times.append(1e6 * (time.perf_counter() - begin))
    return times[1:]  # the first round indexes the prompts


def words(rng: random.Random, count: int) -> list[int]:
    """Tokens, the common ones more often, as in a text."""
    return [min(VOCABULARY - 1, int(rng.paretovariate(0.7))) for _ in range(count)]


def print_regret() -> None:
    """A row per cost table, concurrency and traffic, as it is measured."""
    head = ["costs", "traffic", "concurrency", "best arm", "best / off", "controller / best", "worst 200 / off"]
    print(markdown_table([*head, "exploring"], []))
    for table, costs in MACHINES.items():
        for concurrency in CONCURRENCIES:
            count = max(REQUESTS_AT_LEAST, REQUESTS_PER_PLACE * concurrency)
            for name, traffic in traffics(count, SEED).items():
                regret = measure_regret(traffic, concurrency, costs, SEED)
                figures = (regret.best.speedup, regret.of_best, regret.worst_window, regret.exploring_rounds)
                cells = [table, name, concurrency, regret.best.arm.name, *(f"{figure:.3f}" for figure in figures)]
                print(markdown_row(cells), flush=True)
    print()


def main() -> None:
    parser = bench_parser("tests.bench.speculation", __doc__)
    parser.add_argument("--decisions", action="store_true", help="measure only how long a decision takes")
    if not parser.parse_args().decisions:
        print_regret()
    print(markdown_table(["batch size", "microseconds a decision", "microseconds of lookup", "rounds"], []))
    for size in (1, 4, 16, 64, 256):
        rounds = max(LEAST_ROUNDS, DECISIONS // size)
        decisions, lookups = decision_microseconds(size, rounds), lookup_microseconds(size, rounds)
        print(markdown_row([size, median_and_quartiles(decisions, 0), median_and_quartiles(lookups, 0), rounds]))
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    print(f"\n{machine()}; commit {commit()}; load {load}")


if __name__ == "__main__":
    main()
