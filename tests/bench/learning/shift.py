"""When traffic moves to another domain and back, how much does a draft keep and how fast does it adapt, by recipe?

A run has three phases on recorded requests (tests/assets/traces): the first half of the first domain's requests, all of
the second domain's, and the second half of the first domain's. Every evaluation uses the held-out requests of both
domains, so that recovery and forgetting can be compared. The first evaluation of a phase comes before its first step,
and shows the acceptance length that a draft without further learning would keep.

By default the replay buffer has room for all examples, so recipes differ in which examples they replay. With a small
--memory they differ in which examples survive in the buffer.

Prints the acceptance lengths, and a summary of recovery and forgetting.

A run of one configuration with one seed takes about a CPU minute (estimated). Recording a domain takes some minutes,
once. Needs a CPU only.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from tests.assets.traces.drafted import MESSAGES_BY_DOMAIN
from tests.bench.bench_command import bench_parser
from tests.bench.learning.configurations import CONFIGURATIONS, PUBLISHED, REFERENCE, Configuration
from tests.bench.learning.curve import Curve, format_thousands, mean_and_deviation, mean_curve
from tests.bench.learning.learner import REPLAY_BUFFER_BYTES, Learner
from tests.bench.learning.matching import Match, add_match_option
from tests.bench.learning.recorded_traffic import RecordedTraffic, load_traffic
from tests.bench.markdown import markdown_table

from aurora_runtime.traces import RequestTrace

EVALUATIONS_PER_PHASE: Final = 6
"""Evaluations in a phase, after the one at its beginning."""
RECOVERED_SHARE: Final = 0.95
"""Share of the goal's acceptance length at which a draft counts as recovered. Evaluations vary by about 5 %."""


@dataclass(frozen=True)
class PhasePoint:
    """Held-out acceptance length of each domain after ``tokens`` answer tokens of a phase."""

    phase: str
    tokens: int
    lengths: tuple[float, ...]


def phases(domains: Sequence[str], traces: Sequence[Sequence[RequestTrace]]) -> list[tuple[str, list[RequestTrace]]]:
    """The first domain, the second, and the first again with requests that its first phase has not seen."""
    first, second = ([t for t in each if not t.held_out] for each in traces)
    middle = len(first) // 2
    return [(domains[0], first[:middle]), (domains[1], second), (domains[0], first[middle:])]


def run_phases(
    traffic: Sequence[RecordedTraffic], configuration: Configuration, match: Match, seed: int, replay_bytes: int
) -> Iterator[PhasePoint]:
    """Train an untrained draft through the phases. ``replay_bytes`` bounds the replay buffer."""
    learner = Learner.untrained(configuration, match, seed, replay_bytes)
    traces = [each.traces[configuration.shape] for each in traffic]
    held_out = [learner.held_out(each) for each in traces]

    def point(phase: str, tokens: int) -> PhasePoint:
        lengths = (learner.evaluate(each, tokens).acceptance_length for each in held_out)
        return PhasePoint(phase, tokens, tuple(lengths))

    # A new vocabulary map is tested on held-out requests of the phase's own domain: a later domain is still unknown.
    held_out_of_phases = (held_out[0], held_out[1], held_out[0])
    parts = phases([each.name for each in traffic], traces)
    for (phase, fresh), held_out_of_phase in zip(parts, held_out_of_phases, strict=True):
        tokens = 0
        yield point(phase, tokens)
        for part in range(EVALUATIONS_PER_PHASE):
            begin, end = (len(fresh) * n // EVALUATIONS_PER_PHASE for n in (part, part + 1))
            learner.learn(fresh[begin:end], held_out_of_phase)
            tokens += sum(t.answer_tokens for t in fresh[begin:end])
            yield point(phase, tokens)


def table(domains: Sequence[str], runs: dict[str, list[list[PhasePoint]]]) -> str:
    """One row per recipe and held-out domain. A cell is the mean over seeds, and their standard deviation."""
    points = next(iter(runs.values()))[0]
    head = ["recipe", "held-out domain", *(f"{p.phase} {p.tokens / 1000:.1f}k" for p in points)]
    rows = []
    for name, seeds in runs.items():
        for number, domain in enumerate(domains):
            values = [[each[i].lengths[number] for each in seeds] for i in range(len(points))]
            rows.append([name, domain, *map(mean_and_deviation, values)])
    return markdown_table(head, rows)


def summary(domains: Sequence[str], runs: dict[str, list[list[PhasePoint]]]) -> str:
    """Recovery and forgetting, as means over seeds.

    - ``static`` is a draft that stopped learning before the shift: the first evaluation of the phase.
    - Recovery is the answer tokens after which the mean curve reaches :data:`RECOVERED_SHARE` of a goal. The goal of
      the second domain is its acceptance length at the end of its phase. The goal of the first domain, when it comes
      again, is its acceptance length before the second domain came.
    - Forgetting is the change of the first domain's acceptance length during the second domain's phase.
    """
    a, b = domains
    head = [
        "recipe",
        f"{b}: static",
        f"{b}: end of its phase",
        f"{b}: recovery",
        f"{a}: end of its first phase",
        f"{a}: after {b}",
        f"{a}: forgetting",
        f"{a} again: static",
        f"{a} again: end",
        f"{a} again: recovery",
    ]
    rows = []
    for name, seeds in runs.items():
        first, second, again = (
            [curve_of(points, phase, domain) for points in seeds] for phase, domain in ((0, 0), (1, 1), (2, 0))
        )
        before, after = [c.lengths[-1] for c in first], [c.lengths[0] for c in again]
        rows.append(
            [
                name,
                *(mean_and_deviation([c.lengths[end] for c in second]) for end in (0, -1)),
                recovery(second, mean_curve(second).lengths[-1]),
                mean_and_deviation(before),
                mean_and_deviation(after),
                mean_and_deviation([late - early for late, early in zip(after, before, strict=True)]),
                *(mean_and_deviation([c.lengths[end] for c in again]) for end in (0, -1)),
                recovery(again, mean_curve(first).lengths[-1]),
            ]
        )
    return markdown_table(head, rows)


def curve_of(points: Sequence[PhasePoint], phase: int, domain: int) -> Curve:
    """The acceptance length of domain number ``domain`` (0 or 1) over the tokens of phase number ``phase`` (0 to 2)."""
    own = points[len(points) * phase // 3 : len(points) * (phase + 1) // 3]
    return Curve(tuple(float(p.tokens) for p in own), tuple(p.lengths[domain] for p in own))


def recovery(seeds: Sequence[Curve], goal: float) -> str:
    """The answer tokens after which the mean of ``seeds`` has recovered to ``goal``."""
    return format_thousands(mean_curve(seeds).tokens_to_reach(RECOVERED_SHARE * goal))


def _options() -> argparse.Namespace:
    parser = bench_parser("tests.bench.learning.shift", __doc__)
    parser.add_argument(
        "--domains",
        nargs=2,
        choices=sorted(MESSAGES_BY_DOMAIN),
        default=["json", "docstrings"],
        help="the domain that comes first and again, and the domain between",
    )
    parser.add_argument(
        "--requests", type=int, default=160, help="recorded requests per domain, held-out ones included"
    )
    add_match_option(parser)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one run per configuration and seed")
    default = [name for name, each in CONFIGURATIONS.items() if each.is_default]
    parser.add_argument(
        "--only",
        nargs="+",
        choices=list(CONFIGURATIONS),
        default=[PUBLISHED, REFERENCE, "recent", "surprising", *default],
        metavar="NAME",
        help="configurations to run (see tests.bench.learning --help)",
    )
    parser.add_argument(
        "--memory", type=int, default=REPLAY_BUFFER_BYTES >> 20, metavar="MIB", help="size of the replay buffer in MiB"
    )
    return parser.parse_args()


def main() -> None:
    options = _options()
    torch.set_num_threads(1)
    shapes = dict.fromkeys(CONFIGURATIONS[name].shape for name in options.only)
    traffic = [load_traffic(domain, options.requests, shapes) for domain in options.domains]
    runs: dict[str, list[list[PhasePoint]]] = {}
    for name in options.only:
        for seed in options.seeds:
            points = list(run_phases(traffic, CONFIGURATIONS[name], options.match, seed, options.memory << 20))
            runs.setdefault(name, []).append(points)
            lengths = " ".join(f"{p.lengths[0]:.2f}/{p.lengths[1]:.2f}" for p in points)
            print(f"{name}, seed {seed}: {lengths}", flush=True)
    print("\n" + table(options.domains, runs))
    print("\n" + summary(options.domains, runs))


if __name__ == "__main__":
    main()
