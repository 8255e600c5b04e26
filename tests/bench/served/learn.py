"""Drafts as they are after so much traffic: what the trainer makes of recorded requests that arrive in shards.

Invariants: the training is the trainer's own (its recipe, its batches of a shard, its replay between shards, its
held-out split, its changes of the vocabulary map); a checkpoint has learnt from no request beyond its mark; one that is
kept is complete, because it is built beside its place and renamed.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import torch
from tests.assets.trained_draft import day_0, target
from tests.bench.learning.learner import REPLAY_BYTES
from tests.bench.learning.matching import Match, batches
from tests.bench.learning.remapping import Remapping

from aurora_runtime.traces import RequestTrace
from aurora_runtime.training import export
from aurora_runtime.training.data import HeldOutSet
from aurora_runtime.training.examples import Example, examples_of
from aurora_runtime.training.main import HELD_OUT_REQUESTS
from aurora_runtime.training.recipe import Recipe
from aurora_runtime.training.replay import Memory
from aurora_runtime.training.session import Session
from aurora_runtime.validation.drafts import Draft

SHARD_REQUESTS: Final = 20
"""About what a pod of this machine writes in the 20 seconds after which capture closes a shard."""
FACTS: Final = "learnt.json"


@dataclass(frozen=True)
class Learnt:
    """How a checkpoint came to be. ``tokens`` are answer tokens of the traffic, held-out requests included."""

    tokens: int
    requests: int
    steps: int
    positions: int  # trained, every repetition counted
    cpu_seconds: float


@dataclass(frozen=True)
class Checkpoint:
    """A draft as an engine loads it, and how it came to be. Its version is its place among the checkpoints."""

    draft: Draft
    learnt: Learnt

    @property
    def name(self) -> str:
        return f"EAGLE-3 after {self.learnt.tokens / 1000:.1f}k" if self.learnt.tokens else "EAGLE-3 untrained"


def segments(traces: Sequence[RequestTrace], marks: Sequence[int]) -> list[list[RequestTrace]]:
    """``traces`` cut at ``marks`` (answer tokens, ascending): as many requests as do not exceed each. There are fewer
    segments than marks where the traffic ends first."""
    cut, tokens, at = list[list[RequestTrace]](), 0, 0
    for mark in marks:
        segment = list[RequestTrace]()
        while at < len(traces) and tokens + traces[at].answer_tokens <= mark:
            segment.append(traces[at])
            tokens += traces[at].answer_tokens
            at += 1
        if segment:
            cut.append(segment)
    return cut


def checkpoints(parts: Sequence[Sequence[RequestTrace]], folder: Path, vocabulary: int) -> list[Checkpoint]:
    """The draft of day 0, with a map of ``vocabulary`` tokens, and what it is after each of ``parts``, below
    ``folder``; learnt once for a folder."""
    numbers = range(len(parts) + 1)
    if not all((folder / str(number) / FACTS).exists() for number in numbers):
        for number, (session, learnt) in enumerate(_progress(parts, vocabulary)):
            _keep(session, learnt, folder / str(number))
            print(f"learnt: {learnt}", flush=True)
    return [
        Checkpoint(Draft(place, number), Learnt(**json.loads((place / FACTS).read_text())))
        for number, place in ((number, folder / str(number)) for number in numbers)
    ]


def _progress(parts: Sequence[Sequence[RequestTrace]], vocabulary: int) -> Iterator[tuple[Session, Learnt]]:
    learner = Learner.of_day_0(vocabulary)
    session = learner.session
    tokens = requests = 0
    cpu = 0.0
    yield session, Learnt(tokens, requests, session.steps, session.seen, cpu)
    for part in parts:
        began = time.process_time()
        for start in range(0, len(part), SHARD_REQUESTS):
            learner.shard(part[start : start + SHARD_REQUESTS])
        cpu += time.process_time() - began
        tokens += sum(trace.answer_tokens for trace in part)
        requests += len(part)
        yield session, Learnt(tokens, requests, session.steps, session.seen, cpu)


@dataclass
class Learner:
    """What ``Trainer`` is between two shards, without a store."""

    session: Session
    remapping: Remapping
    memory: Memory = field(default_factory=lambda: Memory(REPLAY_BYTES))
    held_out: HeldOutSet = field(default_factory=lambda: HeldOutSet(HELD_OUT_REQUESTS))
    fresh: int = 0  # positions that were, so far

    @classmethod
    def of_day_0(cls, vocabulary: int) -> Learner:
        session = Session(*day_0(size=vocabulary), Recipe(), torch.device("cpu"))
        return cls(session, Remapping(session, target()))

    def shard(self, served: Sequence[RequestTrace]) -> None:
        """What ``Trainer._shard`` does, its look at the map, and its loop until the next shard where it keeps up."""
        session, memory, recipe = self.session, self.memory, self.session.recipe
        vocab, examples = session.draft.config.vocab_size, list[Example]()
        for trace in served:
            found = examples_of(trace, vocab)
            if trace.held_out:
                self.held_out.add(trace.request, tuple(found))
            else:
                examples += found
        memory.add(examples)
        self.fresh += sum(example.fresh for example in examples)
        for batch in batches(Match.TRAFFIC, examples, memory, recipe, session.generator, self._may_replay):
            session.step(batch)
        self.remapping.after(examples, self.held_out.newest_first())
        while self._may_replay():
            session.step(memory.sample(recipe.batch_slots, session.generator, recipe.choice))

    def _may_replay(self) -> bool:
        return len(self.memory) > 0 and self.session.seen < self.session.recipe.passes * self.fresh


def _keep(session: Session, learnt: Learnt, place: Path) -> None:
    part = place.with_name(f".{place.name}.part")
    for old in (part, place):
        shutil.rmtree(old, ignore_errors=True)
    export.export(session.draft, session.vocabulary.to_target, part)
    (part / FACTS).write_text(json.dumps(asdict(learnt)))
    part.rename(place)
