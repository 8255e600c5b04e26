"""The best map covers most of the counted tokens, and differs from the current map as little as possible."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from aurora_runtime.training.data import examples as module
from aurora_runtime.training.data.examples import examples_of
from aurora_runtime.training.data.token_counts import counts_of
from aurora_runtime.training.model.vocabulary_map import VocabularyMap, best_map, coverage
from tests.unit.training import tiny

VOCAB = 24
SEVERAL = st.lists(st.sampled_from([0.0, 0.0, 0.25, 0.5, 1.0, 2.0, 7.0]), min_size=VOCAB, max_size=VOCAB)


@st.composite
def situations(draw: st.DrawFn) -> tuple[VocabularyMap, Tensor, list[int]]:
    """A map, counts with many ties and zeros, and special tokens of which some are outside the map."""
    ids = draw(st.sets(st.integers(0, VOCAB - 1), min_size=1, max_size=VOCAB))
    special = draw(st.lists(st.integers(0, VOCAB - 1), max_size=3, unique=True))
    counts = torch.tensor(draw(SEVERAL), dtype=torch.float64)
    return VocabularyMap.of(torch.tensor(sorted(ids)), VOCAB), counts, special


@given(situations())
def test_the_best_map_has_the_same_size_and_covers_most(situation: tuple[VocabularyMap, Tensor, list[int]]) -> None:
    current, counts, special = situation
    before = set(current.to_target.tolist())
    ids = best_map(current, counts, special)
    kept = set(special) & before
    free = sorted(counts[[i for i in range(VOCAB) if i not in kept]].tolist(), reverse=True)
    most = float(counts[sorted(kept)].sum()) + sum(free[: len(before) - len(kept)])
    if ids is None:
        assert float(counts[current.to_target].sum()) == most, "the current map is already the best"
        return
    after = set(ids.tolist())
    assert ids.dtype == torch.int64
    assert ids.tolist() == sorted(after)
    assert len(after) == len(before)
    assert kept <= after
    assert float(counts[ids].sum()) == most
    assert coverage(VocabularyMap.of(ids, VOCAB), counts) > coverage(current, counts)
    comes, goes = counts[sorted(after - before)], counts[sorted(before - after)]
    assert float(comes.min()) > float(goes.max()), "a token is replaced only by one that was counted more often"
    assert best_map(VocabularyMap.of(ids, VOCAB), counts, special) is None


def test_among_equal_counts_current_tokens_stay_and_lower_ids_come_first() -> None:
    current = VocabularyMap.of(torch.tensor([0, 1, 5, 7]), 10)
    counts = torch.tensor([0, 3, 9, 9, 9, 9, 0, 0, 0, 0])
    found = best_map(current, counts, [7])
    assert found is not None
    assert found.tolist() == [2, 3, 5, 7]


def test_coverage_of_no_tokens_is_one() -> None:
    assert coverage(VocabularyMap.of(torch.tensor([2]), 5), torch.zeros(5)) == 1.0
    assert coverage(VocabularyMap.of(torch.tensor([2]), 5), torch.tensor([0, 3, 1, 0, 0])) == 0.25


def test_each_answer_token_but_the_first_counts_once_however_the_request_is_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first token is not counted, because the target's prefill makes it and no draft proposes it."""
    traces = [tiny.trace(seed, prompt=6 + seed, answer=9 + seed) for seed in range(6)]
    answers = torch.cat([t.tokens[t.prompt_length + 1 :] for t in traces]).long()
    want = torch.bincount(answers, minlength=tiny.VOCAB)
    whole = [e for t in traces for e in examples_of(t, tiny.VOCAB)]
    assert torch.equal(counts_of(whole, tiny.VOCAB), want)
    monkeypatch.setattr(module, "MAX_ROOTS", 4)
    cut = [e for t in traces for e in examples_of(t, tiny.VOCAB)]
    assert len(cut) > len(whole)
    assert torch.equal(counts_of(cut, tiny.VOCAB), want)
    assert counts_of([], tiny.VOCAB).tolist() == [0] * tiny.VOCAB


def test_ids_outside_the_map_become_minus_one() -> None:
    vocabulary = VocabularyMap.of(torch.tensor([2, 4]), 6)
    assert vocabulary.to_draft_ids(torch.tensor([[-1, 4], [0, 2]], dtype=torch.int32)).tolist() == [[-1, 1], [-1, 0]]
