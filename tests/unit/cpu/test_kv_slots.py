"""Compares the KV slot bookkeeping with loops over requests and tokens."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aurora_runtime.cpu import kv_slots
from tests.example_count import example_count

POOL_ROWS, ROW_LENGTH = 6, 40


class Pool:
    """A table of distinct slots, with requests in random rows and a random range of positions for each.

    Where the ranges have one length, the code has a path of its own.
    """

    def __init__(self, seed: int, batch: int, *, one_length: bool) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self.table = torch.randperm(POOL_ROWS * ROW_LENGTH, generator=self.random).view(POOL_ROWS, ROW_LENGTH).int()
        self.rows = torch.randperm(POOL_ROWS, generator=self.random)[:batch]
        self.start = torch.randint(0, 15, (batch,), generator=self.random)
        self.end = self.start + torch.randint(0, 10, (1 if one_length else batch,), generator=self.random)


pools = st.builds(Pool, seed=st.integers(0, 2**31), batch=st.integers(1, 5), one_length=st.booleans())


@settings(max_examples=example_count(40), deadline=None)
@given(pools)
def test_assigned_slots_are_read_back(pool: Pool) -> None:
    total = int((pool.end - pool.start).sum())
    fresh = torch.arange(1000, 1000 + total)
    expected = pool.table.clone()
    taken = 0
    for row, start, end in zip(pool.rows.tolist(), pool.start.tolist(), pool.end.tolist(), strict=True):
        for position in range(start, end):
            expected[row, position] = fresh[taken]
            taken += 1
    kv_slots.assign_req_to_token_pool_cpu(pool.rows, pool.table, pool.start, pool.end, fresh, ROW_LENGTH)
    assert torch.equal(pool.table, expected)
    back = torch.zeros(total, dtype=torch.int64)
    kv_slots.assign_extend_cache_locs_cpu(pool.rows, pool.table, pool.start, pool.end, back, ROW_LENGTH)
    assert torch.equal(back, fresh)


@settings(max_examples=example_count(40), deadline=None)
@given(pools, st.integers(1, 3), st.integers(1, 4))
def test_draft_slots_begin_behind_the_prefix(pool: Pool, topk: int, columns: int) -> None:
    out = torch.zeros(pool.rows.shape[0] * topk * columns, dtype=torch.int64)
    kv_slots.assign_draft_cache_locs_contiguous_cpu(pool.rows, pool.table, pool.start, out, ROW_LENGTH, topk, columns)
    expected = [
        int(pool.table[row, start + offset])
        for row, start in zip(pool.rows.tolist(), pool.start.tolist(), strict=True)
        for offset in range(topk * columns)
    ]
    assert out.tolist() == expected


@settings(max_examples=example_count(40), deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 5))
def test_bonus_tokens_and_accepted_slots_are_gathered_in_order(seed: int, batch: int, stride: int) -> None:
    random = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 1000, (batch, stride), generator=random)
    lengths = torch.randint(1, stride + 1, (batch,), generator=random).int()
    bonus = torch.zeros(batch, dtype=torch.int32)
    kv_slots.fill_bonus_tokens_cpu(tokens, lengths, bonus, stride)
    assert bonus.tolist() == [int(tokens[b, int(lengths[b]) - 1]) for b in range(batch)]
    index = torch.where(torch.rand(batch, stride, generator=random) < 0.5, -1, tokens % (batch * stride)).int()
    where = torch.arange(batch * stride) + 500
    out = torch.zeros(batch * stride, dtype=torch.int64)
    kv_slots.fill_accept_out_cache_loc_cpu(index, where, out)
    expected = [500 + entry for entry in index.flatten().tolist() if entry > -1]
    assert out[: len(expected)].tolist() == expected
    assert not out[len(expected) :].any()


@settings(max_examples=example_count(40), deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 8))
def test_copying_reads_all_sources_before_it_writes(seed: int, moves: int) -> None:
    random = torch.Generator().manual_seed(seed)
    buffers = [torch.randn(16, 2, 4, generator=random).to(dtype) for dtype in (torch.bfloat16, torch.float32)]
    target = torch.randperm(16, generator=random)[:moves]
    source = torch.randint(0, 16, (moves,), generator=random)
    expected = [buffer.clone() for buffer in buffers]
    for before, after in zip(buffers, expected, strict=True):
        for to, origin in zip(target.tolist(), source.tolist(), strict=True):
            after[to] = before[origin]
    pointers = torch.tensor([buffer.data_ptr() for buffer in buffers])
    strides = torch.tensor([buffer[0].numel() * buffer.element_size() for buffer in buffers])
    kv_slots.copy_all_layer_kv_cache_cpu(pointers, strides, target, source)
    for actual, wanted in zip(buffers, expected, strict=True):
        assert torch.equal(actual, wanted)
