"""The buffer of pending tokens gives back what rounds committed, whatever rounds and requests were mixed."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from aurora_runtime.serving.speculation.worker.pending_tokens import BufferShape, PendingTokens

WIDTH = 3
WIDEST = 5


def small_buffer(columns: int = 40, rows: int = 4) -> PendingTokens:
    token_bytes = WIDTH * 4 + 8
    return PendingTokens(BufferShape(rows, WIDEST, WIDTH, torch.float32, rows * columns * token_bytes), "cpu")


@given(st.data())
def test_rows_keep_their_accepted_tokens_in_order(data: st.DataObject) -> None:
    """Each round verifies n tokens of some requests and commits the first a of each."""
    buffer = small_buffer()
    committed: dict[int, list[float]] = {row: [] for row in range(4)}
    value = 0.0
    for _ in range(data.draw(st.integers(1, 8))):
        rows = data.draw(st.lists(st.integers(0, 3), min_size=1, unique=True))
        nodes = data.draw(st.integers(1, WIDEST))
        tokens = torch.arange(len(rows) * nodes).view(len(rows), nodes) + value
        value += tokens.numel()
        buffer.append(
            rows, [len(committed[row]) for row in rows], tokens.long(), tokens.unsqueeze(-1).expand(-1, -1, WIDTH)
        )
        for row, own in zip(rows, tokens.tolist(), strict=True):
            committed[row] += own[: data.draw(st.integers(1, nodes))]
    late = [row for row in committed if committed[row]]
    late = data.draw(st.permutations(late))
    read = buffer.read(late, [len(committed[row]) for row in late])
    expected = [token for row in late for token in committed[row]]
    assert read.tokens.tolist() == expected
    assert read.hidden[:, -1].tolist() == expected


def test_the_buffer_keeps_to_its_budget_but_holds_two_rounds() -> None:
    assert small_buffer(columns=40).capacity == 40 - WIDEST
    assert small_buffer(columns=40).bytes <= 4 * 40 * (WIDTH * 4 + 8)
    assert small_buffer(columns=0).capacity == WIDEST


def test_a_full_row_takes_the_widest_round() -> None:
    buffer = small_buffer(columns=12)
    tokens = torch.arange(WIDEST).unsqueeze(0)
    buffer.append([0], [buffer.capacity], tokens, tokens.unsqueeze(-1).expand(-1, -1, WIDTH).float())
    assert buffer.read([0], [buffer.capacity + WIDEST]).tokens[-WIDEST:].tolist() == tokens[0].tolist()
