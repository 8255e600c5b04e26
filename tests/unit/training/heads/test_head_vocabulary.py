"""A vocabulary map is read as offsets or as ids, and never guessed."""

from __future__ import annotations

import pytest
import torch

from aurora_runtime.training.heads.head_vocabulary import AmbiguousMap, target_ids

VOCAB = 1000


def mask(ids: torch.Tensor) -> torch.Tensor:
    return torch.zeros(VOCAB, dtype=torch.bool).index_fill_(0, ids, True)


def read(d2t: torch.Tensor | None, t2d: torch.Tensor | None = None, rows: int | None = None) -> list[int]:
    return target_ids(d2t, t2d, d2t.numel() if rows is None and d2t is not None else rows or 0, VOCAB).tolist()


CONSECUTIVE = torch.cat([torch.arange(5, 50), torch.arange(900, 940)])
"""Ids of which some are neighbours, as in every real map: their offsets repeat, so they cannot be ids."""
SPREAD = torch.arange(0, 500, 5)
"""Ids without neighbours: their offsets are different tokens too."""


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_offsets_and_ids_of_a_real_map_are_told_apart(dtype: torch.dtype) -> None:
    offsets = CONSECUTIVE - torch.arange(CONSECUTIVE.numel())
    assert read(offsets.to(dtype)) == CONSECUTIVE.tolist()
    high = CONSECUTIVE + VOCAB - 940
    assert read(high.to(dtype)) == high.tolist()


def test_the_mask_decides_where_both_readings_are_possible() -> None:
    offsets = SPREAD - torch.arange(SPREAD.numel())
    with pytest.raises(AmbiguousMap):
        read(offsets)
    with pytest.raises(AmbiguousMap):
        read(SPREAD)
    assert read(offsets, mask(SPREAD)) == SPREAD.tolist()
    assert read(SPREAD, mask(SPREAD)) == SPREAD.tolist()


def test_a_mask_of_other_tokens_is_refused() -> None:
    with pytest.raises(AmbiguousMap, match="t2d marks"):
        read(CONSECUTIVE, mask(CONSECUTIVE + 1))
    with pytest.raises(AmbiguousMap, match="t2d does not have one entry"):
        read(CONSECUTIVE, mask(CONSECUTIVE)[:-1])


@pytest.mark.parametrize(
    "d2t",
    [
        torch.tensor([-1, -1]),
        torch.tensor([VOCAB, VOCAB]),
        torch.tensor([1, 0]) * (1 << 62),
        torch.tensor([-(1 << 63), 5]),
        torch.tensor([5, 4]) + VOCAB,
        torch.tensor([1, 0, 0, 1]),
    ],
)
def test_a_map_out_of_range_or_with_a_token_twice_is_refused(d2t: torch.Tensor) -> None:
    with pytest.raises(AmbiguousMap):
        read(d2t)


def test_no_map_means_every_token() -> None:
    assert read(None, rows=VOCAB) == list(range(VOCAB))
    with pytest.raises(AmbiguousMap, match="has no d2t"):
        read(None, rows=VOCAB - 1)


def test_a_map_of_another_length_is_refused() -> None:
    with pytest.raises(AmbiguousMap, match="one entry for each of its 3 tokens"):
        read(CONSECUTIVE, rows=3)
