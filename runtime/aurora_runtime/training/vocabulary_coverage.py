"""When another vocabulary map is worth a change: what answers are made of, counted as they come.

A change costs: every engine takes another map with the next version, and the rows of the tokens that come in start
untrained. So a map changes rarely, and only for a gain that is no accident. Invariants: a map is chosen by requests
that are trained on and judged by held-out ones, so that it is not judged by what it was fitted to; what was counted is
saved with the weights, so that a trainer that resumes decides as one that was not stopped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from aurora_runtime.training.data.examples import Example
from aurora_runtime.training.data.token_counts import counts_of
from aurora_runtime.training.model.vocabulary_map import VocabularyMap, better, coverage

LEAST: Final = 2_048
"""Answer tokens before the first change: so few already name 0.96 of the answers to come (tests/bench/coverage.py)."""
APART: Final = 8_192
"""Answer tokens between two changes: as many as one candidate at ``publishTokens``, so that a map is tried before the
next one comes."""
WINDOW: Final = 65_536
"""Answer tokens that count. Beyond it all counts are halved, so that traffic of long ago gives way."""
ENOUGH: Final = 0.98
"""Coverage that is left alone: three guesses in a row then meet a token that the map lacks once in seventeen times."""
GAIN: Final = 0.01
"""Coverage that a change must gain: less is less than the candidates' own least gain in acceptance length."""
CERTAIN: Final = 3.0
"""Standard errors that the gain must exceed: a few held-out requests say little."""
_COUNTS, _WAIT = "tally.counts", "tally.wait"


@dataclass(frozen=True)
class VocabularyChange:
    """A map that is worth changing to, and what it covers of the held-out answers."""

    ids: Tensor  # [draft_vocab] int64, ascending
    replaced: int
    before: float
    after: float

    def __str__(self) -> str:
        return (
            f"vocabulary map changed: covers {self.after:.2f} of answers, was {self.before:.2f}; "
            f"{self.replaced:,} tokens replaced"
        )


class VocabularyCoverage:
    """Counts the tokens of answers that are trained on. ``special`` are the target's special tokens."""

    def __init__(self, vocab: int, special: Sequence[int]) -> None:
        self._special = tuple(special)
        self._counts = torch.zeros(vocab, dtype=torch.float64)
        self._wait = LEAST  # answer tokens until a change may come
        self._news = False

    def add(self, examples: Sequence[Example]) -> None:
        """Count fresh examples, once each."""
        new = counts_of(examples, self._counts.numel())
        self._counts += new
        while float(self._counts.sum()) > WINDOW:
            self._counts /= 2
        self._wait = max(0, self._wait - int(new.sum()))
        self._news = True

    def review(self, vocabulary: VocabularyMap, held_out: Sequence[Example]) -> VocabularyChange | None:
        """The change that is due, which is then taken for made; looks only when something was counted since."""
        if self._wait or not self._news:
            return None
        self._news = False
        change = worth(vocabulary, self._counts, counts_of(held_out, self._counts.numel()), self._special)
        if change is not None:
            self._wait = APART
        return change

    def state(self) -> dict[str, Tensor]:
        """What outlives the process."""
        return {_COUNTS: self._counts.clone(), _WAIT: torch.tensor(self._wait)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of :meth:`state`; a state from before there was a tally leaves it empty."""
        if _COUNTS in tensors:
            self._counts, self._wait = tensors[_COUNTS].clone(), int(tensors[_WAIT])


def worth(
    vocabulary: VocabularyMap, counts: Tensor, held_out: Tensor, special: Sequence[int]
) -> VocabularyChange | None:
    """The change of ``vocabulary`` that ``counts`` suggest, if the counts of ``held_out`` (both ``[vocab]``) agree."""
    before = coverage(vocabulary, held_out)
    ids = better(vocabulary, counts, special) if before < ENOUGH else None
    if ids is None:
        return None
    after = VocabularyMap.of(ids, counts.numel())
    comes, goes = after.to_draft >= 0, vocabulary.to_draft >= 0
    gained, lost = (int(held_out[part].sum()) for part in (comes & ~goes, goes & ~comes))
    # Each of these tokens is said for or against the change: if it were indifferent, their difference would have a
    # standard error of the root of their sum.
    bar = max(GAIN * int(held_out.sum()), CERTAIN * math.sqrt(gained + lost))
    if gained - lost < bar:
        return None
    return VocabularyChange(ids, int((comes & ~goes).sum()), before, coverage(after, held_out))
