"""A draft in training as one configuration has it, and how it does on held-out requests."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from tests.assets.traces.drafted import DRAFT_SHAPES, rounds_of
from tests.assets.traces.proposals import propose
from tests.assets.trained_draft import load_small_target, untrained_draft
from tests.bench.learning.configurations import Configuration
from tests.bench.learning.matching import Match, batches
from tests.bench.learning.remapping import Remapping
from tests.bench.learning.start import randomise

from aurora_api.v1alpha1.draft import DraftSpec
from aurora_runtime.traces import RequestTrace
from aurora_runtime.training.data.examples import Example, examples_of
from aurora_runtime.training.data.replay import ReplayBuffer
from aurora_runtime.training.data.replay_sampling import ReplaySampling
from aurora_runtime.training.evaluation import evaluate
from aurora_runtime.training.model.draft import DraftModel
from aurora_runtime.training.model.vocabulary_map import VocabularyMap
from aurora_runtime.training.optim.session import Session

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


class Learner:
    """What the trainer does with fresh shards."""

    def __init__(
        self,
        session: Session,
        how: Configuration,
        match: Match,
        remapping: Remapping | None = None,
        memory: int = REPLAY_BYTES,
    ) -> None:
        self.session, self._how, self._match, self._remapping = session, how, match, remapping
        self._memory = ReplayBuffer(memory)

    @classmethod
    def from_day_0(cls, how: Configuration, match: Match, seed: int, memory: int = REPLAY_BYTES) -> Learner:
        """``memory`` bounds what is kept for replay, in bytes."""
        draft, vocabulary = untrained_draft()
        if not how.as_target:
            randomise(draft, seed)
        session = Session(draft, vocabulary, how.recipe, torch.device("cpu"))
        session.generator.manual_seed(seed)
        return cls(session, how, match, Remapping(session, load_small_target()) if how.remap else None, memory)

    @property
    def draft(self) -> DraftModel:
        """The weights that would be served."""
        return self.session.served

    def learn(self, shard: Iterable[RequestTrace], judges: Sequence[Example]) -> None:
        """``judges`` are held-out examples: another vocabulary map must cover more of them."""
        session, recipe = self.session, self._how.recipe
        examples = [example for trace in shard for example in self._examples(trace)]
        self._memory.add(examples)
        for batch in batches(self._match, examples, self._memory, recipe, session.generator):
            session.step(batch)
        if self._remapping:
            self._remapping.after(examples, judges)

    def _examples(self, trace: RequestTrace) -> list[Example]:
        recipe = self._how.recipe
        kept = narrowed(trace, self._how.top_k)
        found = examples_of(kept, self.session.draft.config.vocab_size, recipe.prompt_weight)
        if recipe.replay_sampling is not ReplaySampling.PRIORITIZED:
            return found
        return met(self.draft, self.session.vocabulary, trace, found, DRAFT_SHAPES[self._how.shape])

    def look(self, held_out: Sequence[Example], answers: int) -> Look:
        """How the draft does after ``answers`` tokens; each request alone, because they are drawn again later."""
        seen = [evaluate(self.draft, [e], self.session.vocabulary, self._how.steps) for e in held_out]
        return Look(answers, self.session.steps, tuple(s.rounds for s in seen), tuple(s.tokens for s in seen))

    def held_out(self, traces: Iterable[RequestTrace]) -> list[Example]:
        """The held-out side of ``traces``."""
        return [e for t in traces if t.held_out for e in examples_of(t, self.session.draft.config.vocab_size)]


def narrowed(trace: RequestTrace, k: int) -> RequestTrace:
    """``trace`` as a capture of the ``k`` most likely tokens would have kept it."""
    gone = trace.top_logprobs[:, k:].float().exp().sum(-1)
    rest = (trace.rest.float() + gone).clamp(max=1).to(trace.rest.dtype)
    return dataclasses.replace(trace, top_ids=trace.top_ids[:, :k], top_logprobs=trace.top_logprobs[:, :k], rest=rest)


def met(
    draft: DraftModel, vocabulary: VocabularyMap, trace: RequestTrace, examples: Iterable[Example], spec: DraftSpec
) -> list[Example]:
    """``examples`` of ``trace`` with the rounds that ``draft`` would cause as it is now, served at once.

    Those recorded are of drafts that took another way, and their surprises are not this draft's."""
    accepted = torch.full(trace.tokens.shape, -1, dtype=torch.int8)
    for each in rounds_of(trace, propose(draft, vocabulary, trace, spec)):
        accepted[each.root - 1] = each.accepted
    found = list[Example]()
    for e in examples:
        first = e.start + e.first_root
        found.append(dataclasses.replace(e, accepted=accepted[first : first + e.roots]))
    return found
