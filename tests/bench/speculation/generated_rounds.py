"""Generated rounds, whose statistics are those of the published measurements (docs/results/served-speedup.md).

Copied text comes in runs. Within a run lookup is right until the run ends, and the match grows with every token.
Outside of runs some suffixes match by chance, and nothing of what follows is right. The draft knows some tokens and
does not know others, with a chance that differs by request, and errs a little more at every further step.

Recorded rounds are better evidence. Generated ones allow traffic that nobody recorded, in any amount.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log

from tests.bench.speculation.recorded_rounds import RecordedRequest

LOOKUP_TOKENS = 11
DRAFT_TOKENS = 7
LONGEST_MATCH = 32


@dataclass(frozen=True)
class TrafficKind:
    """The statistics of one kind of traffic.

    Attributes:
        run: mean length of copied runs. gap: mean number of tokens between two runs.
        chance_match: share of the tokens outside of runs at which a short suffix matches by chance.
        known: share of tokens that the draft knows. spread: how much its logarithmic odds differ between requests.
        further: chance that a known token is still guessed one step later.
    """

    name: str
    run: float
    gap: float
    chance_match: float
    known: float
    spread: float = 0.4
    further: float = 0.97
    answer_tokens: int = 64

    def with_draft(self, known: float) -> TrafficKind:
        """The same traffic with another draft."""
        return TrafficKind(
            self.name, self.run, self.gap, self.chance_match, known, self.spread, self.further, self.answer_tokens
        )


JSON = TrafficKind("json", run=80.0, gap=1.3, chance_match=0.3, known=0.97, spread=0.3, further=0.99)
DOCSTRINGS = TrafficKind("docstrings", run=7.5, gap=1.9, chance_match=0.3, known=0.66, spread=0.5)
SQL = TrafficKind("sql", run=12.0, gap=2.0, chance_match=0.3, known=0.9)
PROSE = TrafficKind("prose", run=1.0, gap=30.0, chance_match=0.15, known=0.03)
UNTRAINED = 0.002
"""The share of tokens that an untrained draft knows."""


def generate(kind: TrafficKind, requests: int, seed: int = 0) -> list[RecordedRequest]:
    """``requests`` answers of one kind. Equal seeds give equal answers."""
    rng = random.Random(f"{kind.name} {seed}")  # noqa: S311 - reproducible data, no secret
    return [_request(kind, rng) for _ in range(requests)]


def in_turn(kinds: Sequence[TrafficKind], requests: int, seed: int = 0) -> list[RecordedRequest]:
    """About ``requests`` answers of several kinds, one after the other."""
    each = [generate(kind, max(1, requests // len(kinds)), seed) for kind in kinds]
    return [request for turn in zip(*each, strict=True) for request in turn]


def traffics(requests: int, seed: int = 0) -> dict[str, list[RecordedRequest]]:
    """Every kind of traffic, and all of them in turn, with a trained and with an untrained draft."""
    kinds = (JSON, DOCSTRINGS, SQL, PROSE)
    untrained = [kind.with_draft(UNTRAINED) for kind in kinds]
    alone = {kind.name: generate(kind, requests, seed) for kind in kinds}
    alone |= {f"{k.name}, untrained draft": generate(k, requests, seed) for k in untrained if k.name != PROSE.name}
    return {
        **alone,
        "mixed": in_turn(kinds, requests, seed),
        "mixed, untrained draft": in_turn(untrained, requests, seed),
    }


def _request(kind: TrafficKind, rng: random.Random) -> RecordedRequest:
    tokens = max(8, round(rng.gauss(kind.answer_tokens, kind.answer_tokens / 4)))
    run_left, run_age = _runs(kind, rng, tokens + LOOKUP_TOKENS)
    odds = kind.known / (1 - kind.known) * exp(rng.gauss(0, kind.spread))
    known = [rng.random() < odds / (1 + odds) for _ in range(tokens + DRAFT_TOKENS)]
    match, length, right, draft = [], [], [], []
    for place in range(tokens - 1):
        rest = tokens - 1 - place
        if run_age[place] >= 2:
            match.append(min(LONGEST_MATCH, run_age[place]))
            right.append(min(run_left[place], LOOKUP_TOKENS, rest))
            length.append(LOOKUP_TOKENS)
        else:
            by_chance = rng.random() < kind.chance_match
            match.append(rng.choice((2, 2, 2, 3)) if by_chance else 0)
            right.append(0)
            length.append(LOOKUP_TOKENS if by_chance else 0)
        correct = 0
        while correct < min(DRAFT_TOKENS, rest) and known[place + 1 + correct] and rng.random() < kind.further**correct:
            correct += 1
        draft.append(correct)
    return RecordedRequest(kind.name, rng.randint(30, 120), tuple(match), tuple(length), tuple(right), tuple(draft))


def _runs(kind: TrafficKind, rng: random.Random, tokens: int) -> tuple[list[int], list[int]]:
    """For every token, the copied tokens that follow it, and the copied tokens up to it."""
    copied = list[bool]()
    while len(copied) < tokens:
        copied += [True] * _geometric(kind.run, rng) + [False] * _geometric(kind.gap, rng)
    left, age = [0] * tokens, [0] * tokens
    for place in range(1, tokens):
        age[place] = age[place - 1] + 1 if copied[place] else 0
    for place in range(tokens - 2, -1, -1):
        left[place] = left[place + 1] + 1 if copied[place + 1] else 0
    return left, age


def _geometric(mean: float, rng: random.Random) -> int:
    """A number of at least 1 with the given mean."""
    if mean <= 1:
        return 1
    return 1 + int(log(1 - rng.random()) / log(1 - 1 / mean))
