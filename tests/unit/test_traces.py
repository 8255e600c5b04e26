"""Shards of traces: what a reader accepts, and what it refuses in words."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors.torch import save

from aurora_protocol.pod_settings import StateType
from aurora_protocol.tag_hash import NO_TAG
from aurora_runtime.errors import TraceFormatError
from aurora_runtime.packed_states import pack, unpack
from aurora_runtime.traces import (
    ProposalSource,
    decode,
    encode,
    shard_tensors,
    state_type_of,
)
from tests.unit.training import tiny


def test_sources_survive_a_shard() -> None:
    traces = [tiny.trace(1), tiny.trace(2, steps=0)]
    traces[0].source[0] = ProposalSource.LOOKUP
    decoded = list(decode(encode(traces)))
    assert [trace.source.tolist() for trace in decoded] == [trace.source.tolist() for trace in traces]
    assert decoded[0].drafted.tolist() == [False, *[True] * (traces[0].root.numel() - 1)]


def test_tags_survive_a_shard_and_cost_nothing_where_there_are_none() -> None:
    plain, tagged = tiny.trace(1), dataclasses.replace(tiny.trace(2), tag=(1 << 63) - 1)
    assert [trace.tag for trace in decode(encode([plain, tagged]))] == [NO_TAG, (1 << 63) - 1]
    assert "tag" not in shard_tensors([plain])
    assert [trace.tag for trace in decode(encode([plain]))] == [NO_TAG]


def test_a_source_that_the_reader_does_not_know_is_refused() -> None:
    tensors = shard_tensors([tiny.trace(1)])
    tensors["source"][0] = 3
    with pytest.raises(TraceFormatError, match="source of proposals is unknown"):
        list(decode(save(tensors)))


@pytest.mark.parametrize("name", ["node_count", "source"])
def test_a_shard_without_a_tensor_is_refused_by_its_name(name: str) -> None:
    tensors = shard_tensors([tiny.trace(1)])
    del tensors[name]
    with pytest.raises(TraceFormatError, match=f"tensors missing: {name}"):
        list(decode(save(tensors)))


def test_a_source_is_kept_for_each_round() -> None:
    trace = tiny.trace(1)
    with pytest.raises(TraceFormatError, match="round tensors differ in length"):
        type(trace)(**{**vars(trace), "source": torch.zeros(1, dtype=torch.uint8)})


def index_with(column: int, value: int) -> dict[str, torch.Tensor]:
    tensors = shard_tensors([tiny.trace(1), tiny.trace(2)])
    tensors["index"][0, column] = value
    return tensors


@pytest.mark.parametrize("column", range(7))
def test_an_index_with_a_negative_number_is_refused(column: int) -> None:
    with pytest.raises(TraceFormatError, match="impossible lengths"):
        list(decode(save(index_with(column, -8))))


@pytest.mark.parametrize("column", range(1, 7))
def test_an_index_that_does_not_fit_its_tensors_is_refused(column: int) -> None:
    with pytest.raises(TraceFormatError):
        list(decode(save(index_with(column, 1 << 20))))


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("hidden", torch.zeros(3)),
        ("tokens", torch.zeros(3, 3, dtype=torch.int32)),
        ("tokens", torch.zeros(3, dtype=torch.float32)),
        ("node_accepted", torch.zeros(3, dtype=torch.int32)),
        ("top_ids", torch.zeros(3, 100_000, dtype=torch.int32)),
        ("top_logprobs", torch.zeros(3, 1, dtype=torch.float16)),
        ("index", torch.zeros(7, dtype=torch.int64)),
        ("index", torch.zeros(1, 8, dtype=torch.int64)),
        ("index", torch.zeros(1, 7, dtype=torch.float32)),
        ("tag", torch.zeros(3, dtype=torch.int64)),
        ("tag", torch.zeros(1)),
        ("tag", torch.zeros(1, 1, dtype=torch.int64)),
        ("source", torch.zeros(1, dtype=torch.uint8)),
    ],
)
def test_a_tensor_of_another_form_is_refused(name: str, tensor: torch.Tensor) -> None:
    with pytest.raises(TraceFormatError):
        list(decode(save(shard_tensors([tiny.trace(1)]) | {name: tensor})))


def test_packed_states_take_half_the_bytes_and_come_back() -> None:
    traces = [tiny.trace(1), tiny.trace(2)]
    data = encode(traces, StateType.FLOAT8)
    assert state_type_of(data) is StateType.FLOAT8
    assert state_type_of(encode(traces)) is StateType.BFLOAT16
    positions, width = sum(trace.hidden.shape[0] for trace in traces), traces[0].hidden.shape[1]
    assert len(encode(traces)) - len(data) > positions * (width - 2) - 200  # a scale has 2 bytes; names differ
    for trace, found in zip(traces, decode(data), strict=True):
        assert torch.equal(found.hidden, unpack(*pack(trace.hidden)))
        assert torch.equal(found.tokens, trace.tokens)
    assert encode(list(decode(data)), StateType.FLOAT8) == data


@pytest.mark.parametrize(
    "changed",
    [
        {"hidden_scale": None},
        {"hidden_scale": torch.ones(3, dtype=torch.bfloat16)},
        {"hidden_scale": torch.ones(18)},
        {"hidden_float8": torch.ones(18, 96, dtype=torch.uint8)},
        {"hidden_float8": torch.ones(18).to(torch.float8_e4m3fn)},
    ],
)
def test_packed_states_without_their_scales_are_refused(changed: dict[str, torch.Tensor | None]) -> None:
    tensors = shard_tensors([tiny.trace(1)], StateType.FLOAT8) | changed
    with pytest.raises(TraceFormatError, match="the packed hidden states have another"):
        list(decode(save({name: tensor for name, tensor in tensors.items() if tensor is not None})))
