"""A round's committed tokens, as the verified batch holds them."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from aurora_runtime.serving.speculation.worker.early_results import start_copy


def test_the_committed_tokens_are_the_first_of_each_row() -> None:
    result = SimpleNamespace(next_token_ids=torch.arange(8, dtype=torch.int32), accept_lens=torch.tensor([3, 1]))
    assert start_copy(result).committed() == [[0, 1, 2], [4]]
