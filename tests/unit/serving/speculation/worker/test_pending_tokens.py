"""The buffer of pending tokens gives back what rounds committed, whatever rounds and requests were mixed."""

from __future__ import annotations

from dataclasses import replace
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aurora_runtime.engine.speculation_settings import PENDING_TOKENS
from aurora_runtime.serving.speculation.worker import pending_tokens
from aurora_runtime.serving.speculation.worker.pending_tokens import MOST_DEFAULT_BYTES, BufferShape, PendingTokens

WIDTH = 3
WIDEST = 5
TOKEN_BYTES = WIDTH * 4 + 8
PAGE = 4


def small_shape(pages: int | None = None, rows: int = 4) -> BufferShape:
    budget = None if pages is None else pages * PAGE * TOKEN_BYTES
    return BufferShape(rows, WIDEST, WIDTH, torch.float32, budget, request_tokens=40, page_tokens=PAGE)


@pytest.mark.parametrize("most_host_slots", [0, pending_tokens.MOST_HOST_SLOTS])
@given(data=st.data())
def test_rows_keep_their_accepted_tokens_in_order(most_host_slots: int, data: st.DataObject) -> None:
    """Each round verifies n tokens of some requests and commits the first a of each. Some then catch up."""
    with mock.patch.object(pending_tokens, "MOST_HOST_SLOTS", most_host_slots):
        _check_order(data)


def _check_order(data: st.DataObject) -> None:
    buffer = PendingTokens(small_shape(data.draw(st.sampled_from([None, 12]))), "cpu")
    committed: dict[int, list[float]] = {row: [] for row in range(4)}
    value = 0.0
    for _ in range(data.draw(st.integers(1, 8))):
        for row in data.draw(st.sets(st.integers(0, 3), max_size=1)):
            buffer.release(row)
            committed[row] = []
        rows = data.draw(st.lists(st.integers(0, 3), min_size=1, unique=True))
        nodes = data.draw(st.integers(1, WIDEST))
        granted = buffer.reserve(rows, [len(committed[row]) + nodes for row in rows])
        for row in (row for row, room in zip(rows, granted, strict=True) if not room):
            committed[row] = []
        rows = [row for row, room in zip(rows, granted, strict=True) if room]
        if not rows:
            continue
        tokens = torch.arange(len(rows) * nodes).view(len(rows), nodes) + value
        value += tokens.numel()
        counts = [len(committed[row]) for row in rows]
        buffer.append(rows, counts, tokens.long(), tokens.unsqueeze(-1).expand(-1, -1, WIDTH))
        for row, own in zip(rows, tokens.tolist(), strict=True):
            committed[row] += own[: data.draw(st.integers(1, nodes))]
    late = data.draw(st.permutations([row for row in committed if committed[row]]))
    if late:
        read = buffer.read(late, [len(committed[row]) for row in late])
        expected = [token for row in late for token in committed[row]]
        assert read.tokens.tolist() == expected
        assert read.hidden[:, -1].tolist() == expected
    for row in range(4):
        buffer.release(row)
    assert len(buffer._free) * PAGE == buffer.slots, "every page came back, and none twice"
    assert len(set(buffer._free)) == len(buffer._free)


def test_a_full_row_takes_the_widest_round() -> None:
    buffer, full = PendingTokens(small_shape(), "cpu"), small_shape().request_slots
    tokens = torch.arange(WIDEST).unsqueeze(0)
    assert buffer.reserve([0], [full]) == [True]
    buffer.append([0], [full - WIDEST], tokens, tokens.unsqueeze(-1).expand(-1, -1, WIDTH).float())
    assert buffer.read([0], [full]).tokens[-WIDEST:].tolist() == tokens[0].tolist()
    assert buffer.reserve([0], [full + 1]) == [False], "other requests need pages, too"


def test_short_requests_leave_room_for_long_ones_until_the_pages_are_used_up() -> None:
    buffer = PendingTokens(small_shape(pages=12), "cpu")
    assert (buffer._shape.request_slots, buffer.tokens_for_each_request) == (40, 12 - WIDEST)
    assert buffer.reserve([0, 1, 2], [4, 30, 12]) == [True, True, True], "8 of 12 pages are one request's"
    assert len(buffer._free) == 0
    assert buffer.reserve([0, 3], [4, 1]) == [True, False]
    assert buffer.reserve([1, 3], [33, 1]) == [False, True], "a request that must be given up makes room"
    assert len(buffer._free) == 7


@pytest.mark.parametrize(
    ("hidden", "requests", "gigabytes"), [(4096, 64, 0.41), (4096, 256, 1.62), (8192, 64, 0.82), (8192, 256, 2.15)]
)
def test_each_running_request_may_hold_256_tokens_by_default(hidden: int, requests: int, gigabytes: float) -> None:
    """The figures of docs/how-to/sizing.md. SGLang's request table has a row more than requests."""
    shape = BufferShape(requests + 1, 12, 3 * hidden, torch.bfloat16)
    size = shape.bytes
    assert size / 1e9 == pytest.approx(gigabytes, abs=0.005)
    assert size <= MOST_DEFAULT_BYTES
    tokens = shape.pages * shape.page_tokens / shape.rows
    assert tokens == PENDING_TOKENS if size < 0.99 * MOST_DEFAULT_BYTES else 160 < tokens < PENDING_TOKENS


@pytest.mark.parametrize(("hidden", "gigabytes"), [(4096, 3.2), (8192, 6.4)])
def test_thousands_of_running_requests_get_a_page_each_by_default(hidden: int, gigabytes: float) -> None:
    """With less, most of them could not draft again."""
    shape = BufferShape(4096, 12, 3 * hidden, torch.bfloat16)
    assert shape.pages == shape.rows
    assert shape.bytes == shape.least_bytes == pytest.approx(gigabytes * 1e9, rel=0.02)


def test_a_budget_for_less_than_two_rounds_of_each_request_is_an_obstacle() -> None:
    least = small_shape().least_bytes
    assert least == 4 * 3 * PAGE * TOKEN_BYTES, "ten tokens, in whole pages"
    enough = replace(small_shape(), budget_bytes=least)
    assert enough.obstacle is None
    assert PendingTokens(enough, "cpu").tokens_for_each_request >= WIDEST
    obstacle = replace(enough, budget_bytes=least - 1).obstacle
    assert obstacle is not None
    assert f"at least {least}" in obstacle
    assert small_shape().obstacle is None


def test_so_many_requests_that_the_default_is_too_small_still_hold_two_rounds() -> None:
    shape = BufferShape(1 << 16, 12, 3 * 8192, torch.bfloat16)
    assert shape.obstacle is None
    assert shape.pages == 1 << 16
