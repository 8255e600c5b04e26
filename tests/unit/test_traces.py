"""Shards of traces: what a reader accepts of older and newer writers, and what it refuses in words."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save

from aurora_runtime.errors import TraceFormatError
from aurora_runtime.traces import ProposalSource, decode, encode, shard_tensors
from tests.unit.training import tiny


def test_sources_survive_a_shard() -> None:
    traces = [tiny.trace(1), tiny.trace(2, steps=0)]
    traces[0].source[0] = ProposalSource.LOOKUP
    decoded = list(decode(encode(traces)))
    assert [trace.source.tolist() for trace in decoded] == [trace.source.tolist() for trace in traces]
    assert decoded[0].drafted.tolist() == [False, *[True] * (traces[0].root.numel() - 1)]


def test_a_shard_from_before_the_controller_was_drafted_wherever_it_has_proposals() -> None:
    tensors = shard_tensors([tiny.trace(1), tiny.trace(2, steps=0)])
    del tensors["source"]
    drafted, plain = decode(save(tensors))
    assert set(drafted.source.tolist()) == {ProposalSource.DRAFT}
    assert set(plain.source.tolist()) == {ProposalSource.NONE}


def test_a_source_that_the_reader_does_not_know_is_refused() -> None:
    tensors = shard_tensors([tiny.trace(1)])
    tensors["source"][0] = 3
    with pytest.raises(TraceFormatError, match="source of proposals is unknown; upgrade the reader"):
        list(decode(save(tensors)))


def test_a_shard_without_another_tensor_is_refused_by_its_name() -> None:
    tensors = shard_tensors([tiny.trace(1)])
    del tensors["node_count"]
    with pytest.raises(TraceFormatError, match="tensors missing: node_count"):
        list(decode(save(tensors)))


def test_a_source_is_kept_for_each_round() -> None:
    trace = tiny.trace(1)
    with pytest.raises(TraceFormatError, match="round tensors differ in length"):
        type(trace)(**{**vars(trace), "source": torch.zeros(1, dtype=torch.uint8)})
