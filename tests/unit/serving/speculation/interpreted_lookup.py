"""Compares the lookup's Triton kernels with the torch reference in Triton's interpreter.

Run it as a program of its own with ``TRITON_INTERPRET=1``. It ends with an error where the two differ.
"""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aurora_runtime.serving.speculation import lookup_kernel
from aurora_runtime.serving.speculation.lookup_kernel import propose, search
from aurora_runtime.serving.speculation.token_history import TokenHistory
from tests.example_count import example_count

MAX_TOKENS = 60
BLOCK_POSITIONS = 16
"""So small that a row has several blocks."""

texts = st.lists(st.integers(0, 2), min_size=1, max_size=MAX_TOKENS + 3)
histories = st.lists(texts, min_size=1, max_size=4)


def history_of(rows: list[list[int]], max_tokens: int = MAX_TOKENS) -> TokenHistory:
    history = TokenHistory.allocate(len(rows), max_tokens, "cpu")
    for row, tokens in enumerate(rows):
        history.begin(row, torch.tensor(tokens))
        end = torch.tensor([len(tokens) - 1])
        history.end_with(torch.tensor([row]), end, torch.tensor(tokens[-1:]))
    return history


@settings(max_examples=example_count(60), deadline=None)
@given(histories, st.integers(1, 9), st.data())
def compare(rows: list[list[int]], count: int, data: st.DataObject) -> None:
    batch = torch.tensor(data.draw(st.permutations(range(len(rows)))))[: data.draw(st.integers(1, len(rows)))]
    history, longest = history_of(rows), max(map(len, rows))
    expected = propose(history, batch, count, longest=longest)
    found = search(history, batch, count, longest=longest)
    for mine, theirs in zip(vars(found).values(), vars(expected).values(), strict=True):
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine, theirs)


if __name__ == "__main__":
    lookup_kernel.BLOCK_POSITIONS = BLOCK_POSITIONS
    compare()
