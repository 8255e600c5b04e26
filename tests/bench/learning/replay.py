"""One run: recorded requests through one recipe, looked at on held-out requests on the way."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from tests.assets.drafted import propose, rounds_of
from tests.assets.model import ensure_model
from tests.assets.trained_draft import day_0
from tests.bench.learning.configurations import Configuration

from aurora_api.speculator import Target
from aurora_runtime.traces import RequestTrace
from aurora_runtime.training.evaluate import evaluate
from aurora_runtime.training.examples import Example, examples_of
from aurora_runtime.training.remap import remapped
from aurora_runtime.training.replay import Choice, Memory
from aurora_runtime.training.session import Session
from aurora_runtime.training.tally import Change, Tally
from aurora_runtime.training.target import TargetModel, load_target

LOOKS: Final = 4
"""Evaluations per run, evenly over the traffic."""
STEP_REQUESTS: Final = 2
"""Requests per step where each is used once; who replays once takes twice as many per batch."""
DRAFT_STEPS: Final = 3
REPLAY_BYTES: Final = 1 << 30


@dataclass(frozen=True)
class Look:
    """Held-out requests after some traffic: rounds and answer tokens of each."""

    tokens: int  # answer tokens of the traffic so far
    steps: int  # optimizer steps so far
    rounds: tuple[int, ...]
    answers: tuple[int, ...]

    @property
    def accept_length(self) -> float:
        return sum(self.answers) / sum(self.rounds)


@dataclass(frozen=True)
class Run:
    """A configuration with one seed on one kind of traffic."""

    traffic: str
    configuration: str
    seed: int
    looks: tuple[Look, ...]
    positions: int  # trained, every repetition counted
    cpu_seconds: float  # of training alone


def narrowed(trace: RequestTrace, k: int) -> RequestTrace:
    """``trace`` as a capture of the ``k`` most likely tokens would have kept it."""
    gone = trace.top_logprobs[:, k:].float().exp().sum(-1)
    rest = (trace.rest.float() + gone).clamp(max=1).to(trace.rest.dtype)
    return dataclasses.replace(trace, top_ids=trace.top_ids[:, :k], top_logprobs=trace.top_logprobs[:, :k], rest=rest)


def fresh_traffic(traces: Sequence[RequestTrace], tokens: int | None) -> list[RequestTrace]:
    """The training side, up to ``tokens`` answer tokens."""
    taken, count = list[RequestTrace](), 0
    for trace in traces:
        if not trace.held_out and (tokens is None or count < tokens):
            taken.append(trace)
            count += trace.answer_tokens
    return taken


class Remapping:
    """The map as the trainer keeps it (train.py): chosen from the traffic so far, judged on the held-out requests, and
    changed after a look, so that a look compares drafts and not a draft with what it was a moment ago."""

    def __init__(self, session: Session, target: TargetModel, held_out: Sequence[Example]) -> None:
        self._session, self._head, self._held_out = session, target.head, held_out
        self._tally = Tally(target.identity.vocab_size, target.special_tokens)

    def after(self, learnt: Sequence[Example]) -> Change | None:
        """Count what was learnt, and change the map when that is worth it."""
        self._tally.add(learnt)
        change = self._tally.review(self._session.vocabulary, self._held_out)
        if change is not None:
            self._session.restore(remapped(self._session.state(), change.ids, self._head))
        return change


def run(
    traffic: str, traces: Sequence[RequestTrace], name: str, how: Configuration, seed: int, tokens: int | None
) -> Run:
    """Train a day-0 draft on ``traces`` as ``how`` says."""
    draft, vocabulary = day_0()
    session = Session(draft, vocabulary, how.recipe, torch.device("cpu"))
    session.generator.manual_seed(seed)
    memory = Memory(REPLAY_BYTES)
    held_out = [e for t in traces if t.held_out for e in examples_of(t, draft.config.vocab_size)]
    remapping = Remapping(session, load_target(Target(model=str(ensure_model()))), held_out) if how.remap else None
    fresh = fresh_traffic(traces, tokens)
    looks, answers, cpu = list[Look](), 0, 0.0
    for part in range(LOOKS):
        shard = fresh[len(fresh) * part // LOOKS : len(fresh) * (part + 1) // LOOKS]
        began = time.process_time()
        learnt = learn_shard(session, memory, shard, how)
        cpu += time.process_time() - began
        answers += sum(t.answer_tokens for t in shard)
        looks.append(look(session, held_out, answers))
        if remapping and (change := remapping.after(learnt)):
            print(f"{traffic}, seed {seed}, {name}: {change}", flush=True)
    return Run(traffic, name, seed, tuple(looks), session.seen, cpu)


def learn_shard(session: Session, memory: Memory, shard: Sequence[RequestTrace], how: Configuration) -> list[Example]:
    """What the trainer does with a fresh shard, in a number of steps that does not depend on the recipe; returns its
    examples."""
    examples = list[Example]()
    for trace in shard:
        kept = narrowed(trace, how.top_k)
        found = examples_of(kept, session.draft.config.vocab_size, how.recipe.prompt_weight)
        examples += met(session, trace, found) if how.recipe.choice is Choice.SURPRISING else found
    for example in examples:
        memory.add(example)
    order = torch.randperm(len(examples), generator=session.generator).tolist()
    batches = 1 + how.recipe.replay
    groups = max(1, len(examples) // (2 * STEP_REQUESTS)) * 2 // batches  # even, so that one replay takes half
    for i in range(groups):
        group = [examples[n] for n in order[len(order) * i // groups : len(order) * (i + 1) // groups]]
        session.step(group)
        for _ in range(how.recipe.replay):
            slots = len(group) * max(e.slots for e in group)
            session.step(memory.sample(slots, session.generator, how.recipe.choice))
    return examples


def met(session: Session, trace: RequestTrace, examples: Sequence[Example]) -> list[Example]:
    """``examples`` of ``trace`` with the rounds that the session's draft would cause as it is now, served at once.

    Those recorded are of drafts that took another way, and their surprises are not this draft's."""
    rounds = rounds_of(trace, propose(session.draft, session.vocabulary, trace))
    accepted = torch.full(trace.tokens.shape, -1, dtype=torch.int8)
    for each in rounds:
        accepted[each.root - 1] = each.accepted
    found = list[Example]()
    for e in examples:
        first = e.start + e.first_root
        found.append(dataclasses.replace(e, accepted=accepted[first : first + e.roots]))
    return found


def look(session: Session, held_out: Sequence[Example], answers: int) -> Look:
    seen = [evaluate(session.draft, [e], session.vocabulary, DRAFT_STEPS) for e in held_out]
    return Look(answers, session.steps, tuple(s.rounds for s in seen), tuple(s.tokens for s in seen))
