"""What a draft keeps and how fast it turns when traffic goes from one domain to another and back, by recipe.

Three phases on the recorded requests of tests/assets/traces: the first half of the first domain's, all of the
second's, and the first domain's second half. Held-out requests of both are asked at every look, so that recovery and
forgetting stand side by side; the first look of a phase is before its first step: what a draft that stays as it is
would go on with. The memory has room for all of it, so what is compared is what is replayed; with a small ``--memory``
it is what survives in it.

    python -m tests.bench.learning.shift [--domains json docstrings] [--match traffic] [--seeds 0 1 2]
                                         [--only fifo recent "map, replay 3, averaged"] [--memory 1024]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from tests.assets.traces.drafted import MESSAGES_BY_DOMAIN
from tests.bench.learning.configurations import CONFIGURATIONS, PUBLISHED, REFERENCE, Configuration
from tests.bench.learning.curve import Curve, mean, spread, thousands
from tests.bench.learning.learner import REPLAY_BYTES, Learner
from tests.bench.learning.matching import Match
from tests.bench.learning.recorded import Traffic, recorded

from aurora_runtime.traces import RequestTrace

PARTS: Final = 6
"""Looks per phase, after the one at its beginning."""
RECOVERED: Final = 0.95
"""Of the acceptance length that is the goal: looks are that noisy."""


@dataclass(frozen=True)
class Point:
    """Held-out acceptance length of each domain after ``tokens`` answer tokens of a phase."""

    phase: str
    tokens: int
    lengths: tuple[float, ...]


def phases(domains: Sequence[str], traces: Sequence[Sequence[RequestTrace]]) -> list[tuple[str, list[RequestTrace]]]:
    """A, B, and A again with requests that the first phase has not seen."""
    first, second = ([t for t in each if not t.held_out] for each in traces)
    middle = len(first) // 2
    return [(domains[0], first[:middle]), (domains[1], second), (domains[0], first[middle:])]


def walk(traffic: Sequence[Traffic], how: Configuration, match: Match, seed: int, memory: int) -> Iterator[Point]:
    """Train a day-0 draft through the phases as ``how`` says, with ``memory`` bytes to replay from."""
    learner = Learner.from_day_0(how, match, seed, memory)
    traces = [each.traces[how.shape] for each in traffic]
    held_out = [learner.held_out(each) for each in traces]

    def point(phase: str, tokens: int) -> Point:
        return Point(phase, tokens, tuple(learner.look(each, tokens).accept_length for each in held_out))

    parts = phases([each.name for each in traffic], traces)
    # A map is judged by what is served: requests of a domain that is yet to come are not known.
    for (phase, fresh), judges in zip(parts, (held_out[0], held_out[1], held_out[0]), strict=True):
        tokens = 0
        yield point(phase, tokens)
        for part in range(PARTS):
            shard = fresh[len(fresh) * part // PARTS : len(fresh) * (part + 1) // PARTS]
            learner.learn(shard, judges)
            tokens += sum(t.answer_tokens for t in shard)
            yield point(phase, tokens)


def table(domains: Sequence[str], walks: dict[str, list[list[Point]]]) -> str:
    """One row per recipe and domain asked; a cell is the mean over seeds, and their standard deviation."""
    some = next(iter(walks.values()))[0]
    head = ["recipe", "asked", *(f"{p.phase} {p.tokens / 1000:.1f}k" for p in some)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, seeds in walks.items():
        for place, domain in enumerate(domains):
            values = [[points[i].lengths[place] for points in seeds] for i in range(len(some))]
            lines.append("| " + " | ".join([name, domain, *map(spread, values)]) + " |")
    return "\n".join(lines)


def summary(domains: Sequence[str], walks: dict[str, list[list[Point]]]) -> str:
    """Recovery and forgetting, read off the same points, as means over seeds.

    ``static`` is a draft that stays as it was before the shift: the first look of the phase. Recovery are the answer
    tokens after which the mean curve is at :data:`RECOVERED` of a goal: for the second domain what it has at the end of
    its phase, for the first one again what it had before the second came. Forgetting is what the second domain's phase
    did to the first domain's acceptance length.
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
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, seeds in walks.items():
        first, second, again = (
            [curve_of(points, phase, asked) for points in seeds] for phase, asked in ((0, 0), (1, 1), (2, 0))
        )
        before, after = [c.lengths[-1] for c in first], [c.lengths[0] for c in again]
        cells = [
            name,
            *(spread([c.lengths[end] for c in second]) for end in (0, -1)),
            recovery(second, mean(second).lengths[-1]),
            spread(before),
            spread(after),
            spread([late - early for late, early in zip(after, before, strict=True)]),
            *(spread([c.lengths[end] for c in again]) for end in (0, -1)),
            recovery(again, mean(first).lengths[-1]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def curve_of(points: Sequence[Point], phase: int, asked: int) -> Curve:
    """A domain's acceptance length over the tokens of a phase."""
    own = points[len(points) * phase // 3 : len(points) * (phase + 1) // 3]
    return Curve(tuple(float(p.tokens) for p in own), tuple(p.lengths[asked] for p in own))


def recovery(seeds: Sequence[Curve], goal: float) -> str:
    return thousands(mean(seeds).reaches(RECOVERED * goal))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domains", nargs=2, choices=sorted(MESSAGES_BY_DOMAIN), default=["json", "docstrings"])
    parser.add_argument(
        "--requests", type=int, default=160, help="recorded requests per domain, held-out ones included"
    )
    parser.add_argument("--match", type=Match, choices=list(Match), default=Match.TRAFFIC, help="what is held equal")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    default = [name for name, how in CONFIGURATIONS.items() if how.is_default]
    chosen = [PUBLISHED, REFERENCE, "recent", "surprising", *default]
    parser.add_argument("--only", nargs="+", choices=list(CONFIGURATIONS), default=chosen)
    parser.add_argument("--memory", type=int, default=REPLAY_BYTES >> 20, help="MiB to replay from")
    options = parser.parse_args()
    torch.set_num_threads(1)
    shapes = dict.fromkeys(CONFIGURATIONS[name].shape for name in options.only)
    traffic = [recorded(domain, options.requests, shapes) for domain in options.domains]
    walks: dict[str, list[list[Point]]] = {}
    for name in options.only:
        for seed in options.seeds:
            points = list(walk(traffic, CONFIGURATIONS[name], options.match, seed, options.memory << 20))
            walks.setdefault(name, []).append(points)
            print(
                f"{name}, seed {seed}: " + " ".join(f"{p.lengths[0]:.2f}/{p.lengths[1]:.2f}" for p in points),
                flush=True,
            )
    print("\n" + table(options.domains, walks))
    print("\n" + summary(options.domains, walks))


if __name__ == "__main__":
    main()
