"""Attention of tree nodes over the trunk, without keeping scores: the part whose cost grows with the trunk.

The torch reference (``training/model/tree_attention.py``) keeps scores of nodes times slots in float32, or computes
them twice. These kernels keep the log-sum-exp of each row, as FlashAttention-2 does (Dao, arXiv 2307.08691), and skip
the slots behind a node's root. The few ancestors of each node are merged by torch, which needs the log-sum-exp and its
gradient.

Invariant: no sum depends on the order in which programs run, so two backward passes give the same bits.

Never run on a GPU: tests run the kernels in Triton's interpreter, and compile them for sm_80 and sm_90.

Letters in shapes: ``B`` sequences, ``N`` nodes, ``T`` slots of the trunk, ``D`` elements of a head.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_NODES = 64
BLOCK_SLOTS = 64
"""Nodes and slots that one step of a program handles. Half as many where a head has more than 128 elements."""
_WIDE_HEAD: Final = 128
_SMALLEST_PRODUCT: Final = 16
"""Fewest rows and columns of a product on tensor cores."""
_MASKED: Final = tl.constexpr(float("-inf"))
_DTYPES: Final = {torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}


class TrunkAttention(torch.autograd.Function):
    """``(q, k, v, root_slot, dtype)`` -> output ``[B, heads, N, D]`` and log-sum-exp ``[B, heads, N]``, float32.

    Shapes: q ``[B, heads, N, D]``, k and v ``[B, kv, T, D]``, root_slot ``[B, N]`` int64. A node sees the slots up to
    its root. Products are in ``dtype``, sums in float32.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, root_slot: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        q, k, v, root_slot = (tensor.contiguous() for tensor in (q, k, v, root_slot))
        out = torch.empty(q.shape, dtype=torch.float32, device=q.device)
        log_sum = torch.empty(q.shape[:-1], dtype=torch.float32, device=q.device)
        _forward[_node_grid(q)](q, k, v, root_slot, out, log_sum, *_sizes(q, k), **_constants(q, dtype))
        ctx.save_for_backward(q, k, v, root_slot, out, log_sum)
        ctx.dtype = dtype
        return out, log_sum

    @staticmethod
    def backward(ctx: Any, *output_grads: Any) -> tuple[Tensor | None, ...]:
        q, k, v, root_slot, out, log_sum = ctx.saved_tensors
        out_grad = output_grads[0].contiguous()
        # A row's scores also move its log-sum-exp, by their own weights.
        offset = ((out_grad * out).sum(-1) - output_grads[1]).contiguous()
        inputs = (q, k, v, root_slot, out_grad, log_sum, offset)
        q_grad, k_grad, v_grad = (torch.empty(t.shape, dtype=torch.float32, device=t.device) for t in (q, k, v))
        constants = _constants(q, ctx.dtype)
        _backward_nodes[_node_grid(q)](*inputs, q_grad, *_sizes(q, k), **constants)
        slot_grid = (triton.cdiv(k.shape[2], constants["SLOTS"]), k.shape[0] * k.shape[1])
        _backward_slots[slot_grid](*inputs, k_grad, v_grad, *_sizes(q, k), **constants)
        return q_grad.to(q.dtype), k_grad.to(k.dtype), v_grad.to(v.dtype), None, None


def _node_grid(q: Tensor) -> tuple[int, int]:
    return triton.cdiv(q.shape[2], _block(BLOCK_NODES, q.shape[3])), q.shape[0] * q.shape[1]


def _sizes(q: Tensor, k: Tensor) -> tuple[int, int, int, int, int, float]:
    """Nodes, slots, heads, heads that share a key, elements of a head, and the scale of the scores."""
    return q.shape[2], k.shape[2], q.shape[1], q.shape[1] // k.shape[1], q.shape[3], q.shape[3] ** -0.5


def _constants(q: Tensor, dtype: torch.dtype) -> dict[str, Any]:
    width = q.shape[3]
    return {
        "NODES": _block(BLOCK_NODES, width),
        "SLOTS": _block(BLOCK_SLOTS, width),
        "WIDTH": max(_SMALLEST_PRODUCT, triton.next_power_of_2(width)),
        "TYPE": _DTYPES[dtype],
    }


def _block(size: int, width: int) -> int:
    return max(_SMALLEST_PRODUCT, size // 2) if width > _WIDE_HEAD else size


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _rows(pointer, matrix, row, count, width, WIDTH: tl.constexpr, TYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The rows ``row`` of one of the ``[count, width]`` matrices at ``pointer``, in TYPE. Zeros outside the matrix."""
    element = tl.arange(0, WIDTH)
    inside = (row < count)[:, None] & (element < width)[None, :]
    place = pointer + matrix * count * width + row[:, None] * width + element[None, :]
    return tl.load(place, mask=inside, other=0.0).to(TYPE)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _store_rows(pointer, matrix, row, count, width, value, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """Write the rows ``row`` of one of the ``[count, width]`` matrices at ``pointer``."""
    element = tl.arange(0, WIDTH)
    inside = (row < count)[:, None] & (element < width)[None, :]
    tl.store(pointer + matrix * count * width + row[:, None] * width + element[None, :], value, mask=inside)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _numbers(pointer, vector, row, count, other: tl.constexpr):  # type: ignore[no-untyped-def]
    """The elements ``row`` of one of the vectors of ``count`` elements at ``pointer``. ``other`` behind the end."""
    return tl.load(pointer + vector * count + row, mask=row < count, other=other)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _scores(queries, keys, scale):  # type: ignore[no-untyped-def]
    return tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _forward(  # type: ignore[no-untyped-def]
    q,
    k,
    v,
    root_slot,
    out,
    log_sum,
    nodes,
    slots,
    heads,
    groups,
    width,
    scale,
    NODES: tl.constexpr,
    SLOTS: tl.constexpr,
    WIDTH: tl.constexpr,
    TYPE: tl.constexpr,
):
    """One block of nodes of one head."""
    head = tl.program_id(1).to(tl.int64)  # counted through the sequences
    key_head = head // groups
    node = tl.program_id(0) * NODES + tl.arange(0, NODES)
    last = _numbers(root_slot, head // heads, node, nodes, -1)
    queries = _rows(q, head, node, nodes, width, WIDTH, TYPE)
    largest = tl.full([NODES], _MASKED, tl.float32)
    total = tl.zeros([NODES], tl.float32)
    mixed = tl.zeros([NODES, WIDTH], tl.float32)
    for first in range(0, tl.max(last, axis=0).to(tl.int32) + 1, SLOTS):
        slot = first + tl.arange(0, SLOTS)
        keys = _rows(k, key_head, slot, slots, width, WIDTH, TYPE)
        values = _rows(v, key_head, slot, slots, width, WIDTH, TYPE)
        score = tl.where(slot[None, :] <= last[:, None], _scores(queries, keys, scale), _MASKED)
        larger = tl.maximum(largest, tl.max(score, axis=1))
        base = tl.where(larger == _MASKED, 0.0, larger)
        weight = tl.exp(score - base[:, None])
        decay = tl.exp(largest - base)
        total = total * decay + tl.sum(weight, axis=1)
        mixed = mixed * decay[:, None] + tl.dot(weight.to(TYPE), values, input_precision="ieee")
        largest = larger
    total = tl.maximum(total, 1e-30)  # rows behind the last node
    _store_rows(out, head, node, nodes, width, mixed / total[:, None], WIDTH)
    tl.store(log_sum + head * nodes + node, largest + tl.log(total), mask=node < nodes)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _backward_nodes(  # type: ignore[no-untyped-def]
    q,
    k,
    v,
    root_slot,
    out_grad,
    log_sum,
    offset,
    q_grad,
    nodes,
    slots,
    heads,
    groups,
    width,
    scale,
    NODES: tl.constexpr,
    SLOTS: tl.constexpr,
    WIDTH: tl.constexpr,
    TYPE: tl.constexpr,
):
    """The gradient of one block of nodes of one head."""
    head = tl.program_id(1).to(tl.int64)
    key_head = head // groups
    node = tl.program_id(0) * NODES + tl.arange(0, NODES)
    last = _numbers(root_slot, head // heads, node, nodes, -1)
    queries = _rows(q, head, node, nodes, width, WIDTH, TYPE)
    slope = _rows(out_grad, head, node, nodes, width, WIDTH, TYPE)
    norm = _numbers(log_sum, head, node, nodes, 0.0)
    shift = _numbers(offset, head, node, nodes, 0.0)
    grad = tl.zeros([NODES, WIDTH], tl.float32)
    for first in range(0, tl.max(last, axis=0).to(tl.int32) + 1, SLOTS):
        slot = first + tl.arange(0, SLOTS)
        keys = _rows(k, key_head, slot, slots, width, WIDTH, TYPE)
        values = _rows(v, key_head, slot, slots, width, WIDTH, TYPE)
        score = tl.where(slot[None, :] <= last[:, None], _scores(queries, keys, scale), _MASKED)
        weight = tl.exp(score - norm[:, None])
        score_grad = weight * (tl.dot(slope, tl.trans(values), input_precision="ieee") - shift[:, None])
        grad += tl.dot(score_grad.to(TYPE), keys, input_precision="ieee")
    _store_rows(q_grad, head, node, nodes, width, grad * scale, WIDTH)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _backward_slots(  # type: ignore[no-untyped-def]
    q,
    k,
    v,
    root_slot,
    out_grad,
    log_sum,
    offset,
    k_grad,
    v_grad,
    nodes,
    slots,
    heads,
    groups,
    width,
    scale,
    NODES: tl.constexpr,
    SLOTS: tl.constexpr,
    WIDTH: tl.constexpr,
    TYPE: tl.constexpr,
):
    """The gradient of one block of slots of one key head, from all nodes of the heads that share it."""
    key_head = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * SLOTS
    slot = first + tl.arange(0, SLOTS)
    keys = _rows(k, key_head, slot, slots, width, WIDTH, TYPE)
    values = _rows(v, key_head, slot, slots, width, WIDTH, TYPE)
    key_grad = tl.zeros([SLOTS, WIDTH], tl.float32)
    value_grad = tl.zeros([SLOTS, WIDTH], tl.float32)
    for group in range(groups):
        head = key_head * groups + group
        for start in range(0, nodes, NODES):
            node = start + tl.arange(0, NODES)
            last = _numbers(root_slot, head // heads, node, nodes, -1)
            if tl.max(last, axis=0) >= first:
                queries = _rows(q, head, node, nodes, width, WIDTH, TYPE)
                slope = _rows(out_grad, head, node, nodes, width, WIDTH, TYPE)
                norm = _numbers(log_sum, head, node, nodes, 0.0)
                shift = _numbers(offset, head, node, nodes, 0.0)
                visible = (slot[None, :] <= last[:, None]) & (slot < slots)[None, :]
                weight = tl.exp(tl.where(visible, _scores(queries, keys, scale), _MASKED) - norm[:, None])
                score_grad = weight * (tl.dot(slope, tl.trans(values), input_precision="ieee") - shift[:, None])
                value_grad += tl.dot(tl.trans(weight.to(TYPE)), slope, input_precision="ieee")
                key_grad += tl.dot(tl.trans(score_grad.to(TYPE)), queries, input_precision="ieee")
    _store_rows(k_grad, key_head, slot, slots, width, key_grad * scale, WIDTH)
    _store_rows(v_grad, key_head, slot, slots, width, value_grad, WIDTH)
