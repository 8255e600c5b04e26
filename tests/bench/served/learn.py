"""Drafts as they are after so much traffic: what the trainer makes of recorded requests that arrive in shards.

Invariants: the training is the trainer's own (its recipe, its batches of a shard, its replay between shards, its
held-out split); a checkpoint has learnt from no request beyond its mark; one that is kept is complete, because it is
built beside its place and renamed.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import torch
from tests.assets.trained_draft import day_0
from tests.bench.learning.replay import REPLAY_BYTES

from aurora_runtime.traces import RequestTrace
from aurora_runtime.training import export
from aurora_runtime.training.examples import examples_of
from aurora_runtime.training.recipe import Recipe
from aurora_runtime.training.replay import Memory, pack
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


def checkpoints(parts: Sequence[Sequence[RequestTrace]], folder: Path) -> list[Checkpoint]:
    """The draft of day 0 and what it is after each of ``parts``, below ``folder``; learnt once for a folder."""
    numbers = range(len(parts) + 1)
    if not all((folder / str(number) / FACTS).exists() for number in numbers):
        for number, (session, learnt) in enumerate(_progress(parts)):
            _keep(session, learnt, folder / str(number))
            print(f"learnt: {learnt}", flush=True)
    return [
        Checkpoint(Draft(place, number), Learnt(**json.loads((place / FACTS).read_text())))
        for number, place in ((number, folder / str(number)) for number in numbers)
    ]


def _progress(parts: Sequence[Sequence[RequestTrace]]) -> Iterator[tuple[Session, Learnt]]:
    draft, vocabulary = day_0()
    session, memory = Session(draft, vocabulary, Recipe(), torch.device("cpu")), Memory(REPLAY_BYTES)
    tokens = requests = fresh = 0
    cpu = 0.0
    yield session, Learnt(tokens, requests, session.steps, session.seen, cpu)
    for part in parts:
        began = time.process_time()
        for start in range(0, len(part), SHARD_REQUESTS):
            fresh = learn_shard(session, memory, part[start : start + SHARD_REQUESTS], fresh)
        cpu += time.process_time() - began
        tokens += sum(trace.answer_tokens for trace in part)
        requests += len(part)
        yield session, Learnt(tokens, requests, session.steps, session.seen, cpu)


def learn_shard(session: Session, memory: Memory, shard: Sequence[RequestTrace], fresh: int) -> int:
    """What ``Trainer._shard`` does, and its loop until the next shard where it keeps up with the traffic.

    Takes and returns the positions that were fresh so far.
    """
    recipe, generator = session.recipe, session.generator
    examples = [e for trace in shard if not trace.held_out for e in examples_of(trace, session.vocabulary)]
    for example in examples:
        memory.add(example)
    order = torch.randperm(len(examples), generator=generator).tolist()
    for group in pack([examples[i] for i in order], recipe.batch_slots):
        session.step(group)
        fresh += sum(example.fresh for example in group)
        for _ in range(recipe.replay):
            session.step(memory.sample(recipe.batch_slots, generator))
    while len(memory) and session.seen < recipe.passes * fresh:
        session.step(memory.sample(recipe.batch_slots, generator))
    return fresh


def _keep(session: Session, learnt: Learnt, place: Path) -> None:
    part = place.with_name(f".{place.name}.part")
    for old in (part, place):
        shutil.rmtree(old, ignore_errors=True)
    export.export(session.draft, session.vocabulary.to_target, part)
    (part / FACTS).write_text(json.dumps(asdict(learnt)))
    part.rename(place)
