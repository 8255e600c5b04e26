"""Traffic of any length, recorded with the rounds that a learning draft caused: what a narrow service would have seen.

The traces of :mod:`tests.assets.drafted` end after 160 requests; 20,000 answer tokens are several hundred. They are
recorded in chunks, each made once and kept in the cache, so that more traffic later, or a recording that was
interrupted, costs the missing chunks alone. One draft serves all of it: untrained at first, and a new version every few
requests that has learnt from what came before.

Invariants: no two requests of a domain have the same message; the last :data:`RESERVED` of them are never recorded, so
whoever measures with those asks what no draft has learnt from and no choice was made on.

    python -m tests.assets.recorded docstrings --tokens 20000
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Final

import torch

from aurora_runtime.traces import RequestTrace
from aurora_runtime.training.examples import examples_of
from aurora_runtime.training.recipe import Recipe
from aurora_runtime.training.replay import pack
from aurora_runtime.training.session import Session
from tests.assets import drafted, traces
from tests.assets.model import causal_model
from tests.assets.proposals import propose
from tests.assets.trained_draft import day_0
from tests.traffic.prompts import Domain
from tests.traffic.prompts import prompts as endless

REVISION: Final = 1
"""Part of the cache's name: raise it when the recording below changes."""
DOMAINS: Final = ("json", "docstrings")
CHUNK: Final = 200
"""Requests in one file of the cache: about 100 MB of JSON extraction, 200 MB of docstrings."""
RESERVED: Final = 160
MOST: Final = 4000
"""Messages of the domain that has no end of its own."""


def messages(domain: str) -> list[str]:
    """The distinct user messages of ``domain``: those to be recorded, in order, and the reserved ones behind them."""
    if domain == "json":
        return traces.prompts(MOST)
    seen = dict[str, None]()
    for text in endless(Domain(domain), traces.DOMAIN_SEED):
        if text in seen:  # the standard library's functions have all been asked about and begin again
            break
        seen[text] = None
    return list(seen)


def traffic(domain: str) -> list[str]:
    """The messages that may be recorded, in order."""
    return messages(domain)[:-RESERVED]


def reserved(domain: str) -> list[str]:
    """The messages that never are."""
    return messages(domain)[-RESERVED:]


def recorded(domain: str, tokens: int) -> list[RequestTrace]:
    """The first requests of ``domain``, in whole chunks, until their answers hold ``tokens`` or there are no more.

    What is not in the cache is made on one thread: about a second of it per docstring request.
    """
    made, asked, service = list[RequestTrace](), traffic(domain), Service()
    revision = f"r{traces.REVISION}.{drafted.REVISION}.{REVISION}"
    for start in range(0, len(asked), CHUNK):
        if sum(t.answer_tokens for t in made) >= tokens:
            break
        name, chunk = f"{domain}-recorded-{revision}-{start:05}", asked[start : start + CHUNK]
        made += traces.cached(name, partial(service.answer, chunk, made))
    return made


class Service:
    """A target with a draft that learns from what it served: one pass, enough for rounds that change on the way."""

    def __init__(self) -> None:
        self._session: Session | None = None
        self._studied = 0
        """Requests of the traffic, from its beginning."""

    def answer(self, asked: Sequence[str], before: Sequence[RequestTrace]) -> Iterator[RequestTrace]:
        """Answer ``asked``, the requests that follow ``before``, with the rounds that the draft causes."""
        for start in range(self._studied, len(before), drafted.PHASE):  # what lay in the cache
            self._study(before[start : start + drafted.PHASE])
        answered = list(traces.generate(asked))
        model = causal_model()
        draft, vocabulary, spec = self._learner.draft, self._learner.vocabulary, drafted.SHAPES[drafted.CHAINS]
        for start in range(0, len(answered), drafted.PHASE):
            version = self._studied // drafted.PHASE
            served = [
                drafted.with_rounds(trace, propose(draft, vocabulary, trace, spec), model, version)
                for trace in answered[start : start + drafted.PHASE]
            ]
            yield from served
            self._study(served)

    @property
    def _learner(self) -> Session:
        if self._session is None:  # not before something is missing in the cache: the target is loaded for it
            self._session = Session(*day_0(), Recipe(), torch.device("cpu"))
        return self._session

    def _study(self, served: Sequence[RequestTrace]) -> None:
        session = self._learner
        examples = [
            e for trace in served if not trace.held_out for e in examples_of(trace, session.draft.config.vocab_size)
        ]
        for group in pack(examples, session.recipe.batch_slots):
            session.step(group)
        self._studied += len(served)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("domain", choices=DOMAINS)
    parser.add_argument("--tokens", type=int, default=20000, help="answer tokens")
    options = parser.parse_args()
    found = recorded(options.domain, options.tokens)
    for start in range(0, len(found), CHUNK):
        chunk = found[start : start + CHUNK]
        answers, rounds = sum(t.answer_tokens for t in chunk), sum(t.root.shape[0] for t in chunk)
        held_out = sum(t.held_out for t in chunk)
        print(f"requests {start} to {start + len(chunk) - 1} ({held_out} held out): {answers} tokens, {rounds} rounds")
    print(f"{sum(t.answer_tokens for t in found)} answer tokens of {options.domain}")


if __name__ == "__main__":
    main()
