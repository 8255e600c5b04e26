"""Compares attention with a loop that computes every query alone, in fp64, over exactly the slots it may see."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aurora_runtime.cpu import attention_backend
from tests.example_count import example_count

POOL_SLOTS = 64
POOL_LEN = 24


def attend_one_query(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float, logit_cap: float
) -> torch.Tensor:
    """Attend a query [H, D] over keys [L, Hk, D] and values [L, Hk, Dv], head by head: [H, Dv]."""
    fold = query.shape[0] // keys.shape[1]
    rows = []
    for head in range(query.shape[0]):
        scores = keys[:, head // fold].double() @ query[head].double() * scaling
        if logit_cap > 0:
            scores = logit_cap * torch.tanh(scores / logit_cap)
        rows.append(scores.softmax(0) @ values[:, head // fold].double())
    return torch.stack(rows)


class PagedRequests:
    """Random requests in a random paged KV cache."""

    def __init__(self, seed: int, batch: int, kv_heads: int, fold: int, width: int, dtype: torch.dtype) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self.dtype = dtype
        self.heads, self.kv_heads, self.fold, self.width = kv_heads * fold, kv_heads, fold, width
        self.k = self.normal(POOL_SLOTS, kv_heads, width)
        self.v = self.normal(POOL_SLOTS, kv_heads, width)
        self.table = torch.stack(
            [torch.randperm(POOL_SLOTS, generator=self.random)[:POOL_LEN] for _ in range(batch + 2)]
        )
        self.table = self.table.int()
        self.rows = torch.randperm(batch + 2, generator=self.random)[:batch]

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.random).to(self.dtype)

    def lengths(self, low: int, high: int, batch: int) -> torch.Tensor:
        return torch.randint(low, high + 1, (batch,), generator=self.random)

    def keys_and_values(self, request: int, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        slots = self.table[self.rows[request], positions].long()
        return self.k[slots], self.v[slots]


cases = st.builds(
    PagedRequests,
    seed=st.integers(0, 2**31),
    batch=st.integers(1, 4),
    kv_heads=st.integers(1, 3),
    fold=st.integers(1, 3),
    width=st.sampled_from([16, 64]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)


def assert_close(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    relative, absolute = (2e-2, 2e-2) if dtype is torch.bfloat16 else (1e-4, 1e-5)
    torch.testing.assert_close(actual, expected, rtol=relative, atol=absolute)


@settings(max_examples=example_count(40), deadline=None)
@given(cases, st.sampled_from([0.0, 5.0]))
def test_decoding_equals_attention_of_each_query_over_its_own_slots(case: PagedRequests, logit_cap: float) -> None:
    batch = case.rows.shape[0]
    lengths = case.lengths(1, POOL_LEN, batch)
    query = case.normal(batch, case.heads, case.width)
    output = torch.zeros_like(query)
    plan = attention_backend.plan_decode(case.table, case.rows, lengths)
    attention_backend.attend(query, case.k, case.v, output, plan, 0.3, logit_cap)
    for request in range(batch):
        keys, values = case.keys_and_values(request, torch.arange(int(lengths[request])))
        expected = attend_one_query(query[request], keys, values, 0.3, logit_cap)
        assert_close(output[request].double(), expected, case.dtype)


@settings(max_examples=example_count(60), deadline=None)
@given(cases, st.sampled_from(["causal", "tree"]), st.booleans())
def test_extending_equals_attention_of_each_query_over_the_keys_it_may_see(
    case: PagedRequests, kind: str, uniform: bool
) -> None:
    batch = case.rows.shape[0]
    new = torch.full((batch,), 4) if uniform or kind == "tree" else case.lengths(0, 9, batch)
    lengths = new + case.lengths(1, POOL_LEN - 9, batch)
    starts = new.cumsum(0) - new
    query = case.normal(int(new.sum()), case.heads, case.width)
    visible = []
    for request in range(batch):
        size, total = int(new[request]), int(lengths[request])
        see = torch.ones(size, total, dtype=torch.bool)
        own = torch.rand(size, size, generator=case.random) < 0.5
        own = torch.ones(size, size, dtype=torch.bool) if kind == "causal" else own
        see[:, total - size :] = own.tril() | torch.eye(size, dtype=torch.bool)
        visible.append(see)
    mask = None
    if kind == "tree":
        mask = torch.cat([see[:, see.shape[1] - see.shape[0] :].flatten() for see in visible])
    output = torch.zeros_like(query)
    plan = attention_backend.plan_extend(
        case.table, case.rows, lengths, new.int(), starts.int(), mask, heads_per_kv_head=case.fold
    )
    attention_backend.attend(query, case.k, case.v, output, plan, 0.3, 0.0)
    for request in range(batch):
        for index in range(int(new[request])):
            keys, values = case.keys_and_values(request, visible[request][index].nonzero().flatten())
            row = int(starts[request]) + index
            expected = attend_one_query(query[row], keys, values, 0.3, 0.0)
            assert_close(output[row].double(), expected, case.dtype)


def test_decoding_alone_equals_decoding_in_a_batch_bit_for_bit() -> None:
    case = PagedRequests(seed=0, batch=4, kv_heads=3, fold=3, width=64, dtype=torch.bfloat16)
    for seed in range(20):
        case.random.manual_seed(seed)
        lengths = case.lengths(1, POOL_LEN, 4)
        q = case.normal(4, case.heads, case.width)
        together, alone = torch.zeros_like(q), torch.zeros_like(q)
        plan = attention_backend.plan_decode(case.table, case.rows, lengths)
        attention_backend.attend(q, case.k, case.v, together, plan, 0.125, 0.0)
        for index in range(4):
            one = slice(index, index + 1)
            plan = attention_backend.plan_decode(case.table, case.rows[one], lengths[one])
            attention_backend.attend(q[one], case.k, case.v, alone[one], plan, 0.125, 0.0)
        assert torch.equal(alone, together)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("kv_heads", "fold"), [(3, 3), (4, 1), (2, 8)])
def test_verifying_a_token_equals_decoding_it_bit_for_bit(dtype: torch.dtype, kv_heads: int, fold: int) -> None:
    """Holds where the keys fill whole vectors. Elsewhere padded keys may change the last bit of a float32 sum."""
    new, width, random = 4, 64, torch.Generator().manual_seed(0)
    table, rows = torch.randperm(512, generator=random)[None].int(), torch.zeros(1, dtype=torch.int64)
    k, v = (torch.randn(512, kv_heads, width, generator=random).to(dtype) for _ in range(2))
    for total in range(16, 400, 16):
        query = torch.randn(new, kv_heads * fold, width, generator=random).to(dtype)
        together, alone = torch.zeros_like(query), torch.zeros_like(query)
        lengths, asked = torch.tensor([total]), torch.tensor([new], dtype=torch.int32)
        starts = torch.zeros_like(asked)
        plan = attention_backend.plan_extend(table, rows, lengths, asked, starts, None, heads_per_kv_head=fold)
        attention_backend.attend(query, k, v, together, plan, 0.125, 0.0)
        for index in range(new):
            one = slice(index, index + 1)
            plan = attention_backend.plan_decode(table, rows, lengths - new + index + 1)
            attention_backend.attend(query[one], k, v, alone[one], plan, 0.125, 0.0)
        assert torch.equal(alone, together)


def test_a_layer_that_is_not_plain_is_refused() -> None:
    attention_backend.register_operations()
    with pytest.raises(NotImplementedError, match="latent attention"):
        torch.ops.sgl_kernel.decode_attention_cpu(torch.zeros(1), 1.0, None)


def test_padding_at_most_doubles_the_work_of_an_unequal_prefill_batch() -> None:
    new = torch.tensor([1, 1000, 3, 2, 900, 1])
    table = torch.arange(1024).repeat(6, 1).int()
    plan = attention_backend.plan_extend(
        table, torch.arange(6), new, new, new.cumsum(0) - new, None, heads_per_kv_head=1
    )
    assert sum(group.batch * group.queries for group in plan.groups) <= 2 * int(new.sum())
    assert math.prod(plan.groups[0].slots.shape) > 0
