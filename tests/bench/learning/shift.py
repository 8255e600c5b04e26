"""What a draft keeps and how fast it turns when traffic goes from one domain to another and back, by recipe.

Three phases on the recorded requests of tests/assets/drafted.py: the first half of the first domain's, all of the
second's, and the first domain's second half. Held-out requests of both are asked at every look, so that recovery and
forgetting stand side by side; the first look of a phase is before its first step: what a draft that stays as it is
would go on with. The memory has room for all of it, so what is compared is what is replayed, not what is evicted.

    python -m tests.bench.learning.shift [--domains json docstrings] [--seeds 0 1 2] [--only fifo recent]
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from tests.assets.drafted import TRAFFIC, drafted_traces
from tests.assets.trained_draft import day_0
from tests.bench.learning.configurations import CONFIGURATIONS, REFERENCE, Configuration
from tests.bench.learning.replay import REPLAY_BYTES, learn_shard, look

from aurora_runtime.traces import RequestTrace
from aurora_runtime.training.examples import Example, examples_of
from aurora_runtime.training.replay import Memory
from aurora_runtime.training.session import Session

PARTS: Final = 4
"""Looks per phase, after the one at its beginning."""
RECOVERED: Final = 0.95
"""Share of the first domain's former acceptance length that counts as all of it: looks are that noisy."""


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


def walk(
    parts: Sequence[tuple[str, Sequence[RequestTrace]]],
    asked: Sequence[Sequence[RequestTrace]],
    how: Configuration,
    seed: int,
) -> Iterator[Point]:
    """Train a day-0 draft through the phases as ``how`` says."""
    draft, vocabulary = day_0()
    session = Session(draft, vocabulary, how.recipe, torch.device("cpu"))
    session.generator.manual_seed(seed)
    memory, held_out = Memory(REPLAY_BYTES), [_examples(each, draft.config.vocab_size) for each in asked]
    for phase, fresh in parts:
        tokens = 0
        yield _point(session, held_out, phase, tokens)
        for part in range(PARTS):
            shard = fresh[len(fresh) * part // PARTS : len(fresh) * (part + 1) // PARTS]
            learn_shard(session, memory, shard, how)
            tokens += sum(t.answer_tokens for t in shard)
            yield _point(session, held_out, phase, tokens)


def _examples(traces: Sequence[RequestTrace], vocab: int) -> list[Example]:
    return [e for t in traces for e in examples_of(t, vocab)]


def _point(session: Session, held_out: Sequence[Sequence[Example]], phase: str, tokens: int) -> Point:
    return Point(phase, tokens, tuple(look(session, each, tokens).accept_length for each in held_out))


def table(domains: Sequence[str], walks: dict[str, list[list[Point]]]) -> str:
    """One row per recipe and domain asked; a cell is the mean over seeds, and their standard deviation."""
    some = next(iter(walks.values()))[0]
    head = ["recipe", "asked", *(f"{p.phase} {p.tokens / 1000:.1f}k" for p in some)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, seeds in walks.items():
        for place, domain in enumerate(domains):
            values = [[points[i].lengths[place] for points in seeds] for i in range(len(some))]
            lines.append("| " + " | ".join([name, domain, *map(_cell, values)]) + " |")
    return "\n".join(lines)


def forgotten(points: Sequence[Point]) -> float:
    """By how much the first domain's acceptance length fell while the second was served."""
    return points[PARTS].lengths[0] - points[2 * (PARTS + 1)].lengths[0]


def recovery(points: Sequence[Point]) -> float | None:
    """Answer tokens of the third phase until the first domain's acceptance length was :data:`RECOVERED` of what it
    was before the second came, on a straight line between looks; None when it did not get there."""
    goal = RECOVERED * points[PARTS].lengths[0]
    last = points[2 * (PARTS + 1) :]
    if last[0].lengths[0] >= goal:
        return 0.0
    for before, after in itertools.pairwise(last):
        low, high = before.lengths[0], after.lengths[0]
        if high >= goal:
            return before.tokens + (after.tokens - before.tokens) * (goal - low) / (high - low)
    return None


def summary(walks: dict[str, list[list[Point]]]) -> str:
    """One row per recipe: what it forgot, and what it took to learn it again."""
    lines = ["| recipe | forgotten | tokens until recovered |", "|---|---|---|"]
    for name, seeds in walks.items():
        found = [recovery(points) for points in seeds]
        reached = [tokens for tokens in found if tokens is not None]
        took = f"{statistics.fmean(reached):.0f}" if reached else "never"
        part = "" if len(reached) in (0, len(found)) else f" ({len(reached)} of {len(found)} seeds)"
        lines.append(f"| {name} | {_cell([forgotten(points) for points in seeds])} | {took}{part} |")
    return "\n".join(lines)


def _cell(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domains", nargs=2, choices=sorted(TRAFFIC), default=["json", "docstrings"])
    parser.add_argument(
        "--requests", type=int, default=160, help="recorded requests per domain, held-out ones included"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    # Walks keep their map: held-out requests of a domain that is yet to come must not judge one.
    fixed = [name for name, how in CONFIGURATIONS.items() if not how.remap]
    chosen = ["fifo", REFERENCE, "recent", "surprising", "discard 0.1"]
    parser.add_argument("--only", nargs="+", choices=fixed, default=chosen)
    options = parser.parse_args()
    torch.set_num_threads(1)
    traces = [drafted_traces(domain, options.requests) for domain in options.domains]
    parts, asked = phases(options.domains, traces), [[t for t in each if t.held_out] for each in traces]
    walks: dict[str, list[list[Point]]] = {}
    for name in options.only:
        for seed in options.seeds:
            points = list(walk(parts, asked, CONFIGURATIONS[name], seed))
            walks.setdefault(name, []).append(points)
            print(
                f"{name}, seed {seed}: " + " ".join(f"{p.lengths[0]:.2f}/{p.lengths[1]:.2f}" for p in points),
                flush=True,
            )
    print("\n" + table(options.domains, walks) + "\n\n" + summary(walks))


if __name__ == "__main__":
    main()
