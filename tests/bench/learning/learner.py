"""Trains a draft by one configuration, as the trainer does, and evaluates the draft on held-out requests."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from tests.assets.trained_draft import load_small_target, untrained_draft
from tests.bench.learning.configurations import Configuration
from tests.bench.learning.matching import Match, batches

from aurora_runtime.traces import RequestTrace
from aurora_runtime.training.data.examples import Example, examples_of
from aurora_runtime.training.data.replay import ReplayBuffer
from aurora_runtime.training.evaluation import evaluate
from aurora_runtime.training.model.draft import DraftModel
from aurora_runtime.training.optim.session import Session
from aurora_runtime.training.optim.vocabulary_remap import remapped
from aurora_runtime.training.target.target_model import TargetModel
from aurora_runtime.training.vocabulary_coverage import VocabularyChange, VocabularyCoverage

REPLAY_BUFFER_BYTES: Final = 1 << 30
STANDARD_DEVIATION: Final = 0.02
"""Of random weights. Llama's own initialisation uses the same."""


@dataclass(frozen=True)
class Evaluation:
    """The result of simulating the held-out requests after some traffic.

    Attributes:
        tokens: answer tokens of the traffic so far.
        steps: optimizer steps so far.
        rounds: verify rounds of each held-out request.
        answers: answer tokens of each held-out request.
    """

    tokens: int
    steps: int
    rounds: tuple[int, ...]
    answers: tuple[int, ...]

    @property
    def acceptance_length(self) -> float:
        return sum(self.answers) / sum(self.rounds)


class VocabularyRemapper:
    """Counts the tokens that a session learns from, and changes the session's map between two shards."""

    def __init__(self, session: Session, target: TargetModel) -> None:
        self._session, self._head = session, target.head
        self._coverage = VocabularyCoverage(target.identity.vocab_size, target.special_tokens)

    def after_shard(self, learned: Sequence[Example], held_out: Sequence[Example]) -> VocabularyChange | None:
        """Count the tokens of ``learned``, the last shard. Change the map when a new map covers more of ``held_out``.

        Returns:
            The change, which is also printed; None when the map stays.
        """
        self._coverage.add(learned)
        change = self._coverage.review(self._session.vocabulary, held_out)
        if change is not None:
            self._session.restore(remapped(self._session.state(), change.ids, self._head))
            print(change, flush=True)
        return change


class Learner:
    """Learns from shards as the trainer does, without a store."""

    def __init__(
        self,
        session: Session,
        configuration: Configuration,
        match: Match,
        remapper: VocabularyRemapper | None = None,
    ) -> None:
        self.session = session
        self._configuration, self._match, self._remapper = configuration, match, remapper
        self._replay_buffer = ReplayBuffer(REPLAY_BUFFER_BYTES)

    @classmethod
    def untrained(cls, configuration: Configuration, match: Match, seed: int) -> Learner:
        """A learner whose draft is untrained."""
        draft, vocabulary = untrained_draft()
        if not configuration.copies_target:
            randomise(draft, seed)
        session = Session(draft, vocabulary, configuration.recipe, torch.device("cpu"))
        session.generator.manual_seed(seed)
        remapper = VocabularyRemapper(session, load_small_target()) if configuration.remap else None
        return cls(session, configuration, match, remapper)

    @property
    def draft(self) -> DraftModel:
        """The draft with the weights that would be served."""
        return self.session.served

    def learn(self, shard: Iterable[RequestTrace], held_out: Sequence[Example]) -> None:
        """Learn from ``shard``. A new vocabulary map must cover more of ``held_out``."""
        session, recipe = self.session, self._configuration.recipe
        examples = [example for trace in shard for example in self._examples(trace)]
        self._replay_buffer.add(examples)
        for batch in batches(self._match, examples, self._replay_buffer, recipe, session.generator):
            session.step(batch)
        if self._remapper:
            self._remapper.after_shard(examples, held_out)

    def _examples(self, trace: RequestTrace) -> list[Example]:
        return examples_of(with_top_k(trace, self._configuration.top_k), self.session.draft.config.vocab_size)

    def evaluate(self, held_out: Sequence[Example], tokens: int) -> Evaluation:
        """Evaluate the draft after ``tokens`` answer tokens of traffic.

        Each request is evaluated alone, because the intervals of the report resample the requests.
        """
        steps, vocabulary = self._configuration.draft_steps, self.session.vocabulary
        results = [evaluate(self.draft, [example], vocabulary, steps) for example in held_out]
        rounds, answers = tuple(sum(r.rounds) for r in results), tuple(sum(r.tokens) for r in results)
        return Evaluation(tokens, self.session.steps, rounds, answers)

    def held_out(self, traces: Iterable[RequestTrace]) -> list[Example]:
        """The examples of the held-out requests among ``traces``."""
        return [e for t in traces if t.held_out for e in examples_of(t, self.session.draft.config.vocab_size)]


def with_top_k(trace: RequestTrace, top_k: int) -> RequestTrace:
    """``trace`` as it would be if capture kept only the ``top_k`` most likely tokens of each node."""
    dropped = trace.top_logprobs[:, top_k:].float().exp().sum(-1)
    before = trace.uncaptured_mass
    return dataclasses.replace(
        trace,
        top_ids=trace.top_ids[:, :top_k],
        top_logprobs=trace.top_logprobs[:, :top_k],
        uncaptured_mass=(before.float() + dropped).clamp(max=1).to(before.dtype),
    )


@torch.no_grad()
def randomise(draft: DraftModel, seed: int) -> None:
    """Replace the weights that the layer, the norms and the head of ``draft`` copied from the target.

    The projection of the target's states (``fc``, which passes the topmost state through) stays, so that the comparison
    is about the copied weights alone. The same seed gives the same weights.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in draft.named_parameters():
        if parameter.dim() == 1:
            parameter.fill_(1.0)
        elif not name.startswith("fc."):
            parameter.normal_(0.0, STANDARD_DEVIATION, generator=generator)
