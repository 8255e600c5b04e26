"""Only distributions are trained on, and what capture writes passes unchanged."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from aurora_runtime.errors import TraceFormatError
from aurora_runtime.serving.capture.verify_tensors import top_tokens
from aurora_runtime.traces import RequestTrace
from aurora_runtime.training.data.captured import CapturedDistributions, captured_at
from tests.unit.training import tiny


def captured(trace: RequestTrace, vocab_size: int = tiny.VOCAB) -> CapturedDistributions:
    return captured_at(trace, torch.arange(trace.node_token.shape[0]), vocab_size)


def with_tokens(ids: Tensor, logprobs: Tensor, mass: Tensor) -> RequestTrace:
    """A trace whose nodes have the distributions of these rows."""
    trace = tiny.trace(1)
    rows = torch.arange(trace.node_token.shape[0]) % ids.shape[0]
    return dataclasses.replace(trace, top_ids=ids[rows], top_logprobs=logprobs[rows], uncaptured_mass=mass[rows])


def test_what_capture_writes_is_kept_bit_by_bit() -> None:
    generator = torch.Generator().manual_seed(1)
    for scale in (0.0, 1.0, 8.0, 60.0):  # from a uniform distribution to a certain token
        logits = torch.randn(200, tiny.VOCAB, generator=generator) * scale
        for k in (1, 8, 64, tiny.VOCAB):
            ids, logprobs, mass = top_tokens(logits, k)
            found = captured(with_tokens(ids, logprobs, mass))
            rows = torch.arange(len(found)) % 200
            assert torch.equal(found.target_ids, ids[rows])
            assert torch.equal(found.target_probs, logprobs[rows].float().exp().half())
            assert torch.equal(found.uncaptured_mass, mass[rows])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_is_no_error(dtype: torch.dtype) -> None:
    logits = torch.randn(200, tiny.VOCAB, generator=torch.Generator().manual_seed(2)) * 3
    ids, logprobs, mass = top_tokens(logits, 256)
    logprobs[:, 0] += 2e-3
    found = captured(with_tokens(ids, logprobs.to(dtype), mass.to(dtype) - 1e-3))
    assert 0 <= float(found.uncaptured_mass.min()) <= float(found.uncaptured_mass.max()) <= 1


@pytest.mark.parametrize("value", [math.inf, math.nan, 1.0, 10.0])
def test_a_logarithm_of_no_probability_is_refused(value: float) -> None:
    trace = tiny.trace(1)
    trace.top_logprobs[3, 2] = value
    with pytest.raises(TraceFormatError):
        captured(trace)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, -0.5, 1.1, 60_000.0])
def test_a_mass_of_no_probability_is_refused(value: float) -> None:
    trace = tiny.trace(1)
    trace.uncaptured_mass[3] = value
    with pytest.raises(TraceFormatError):
        captured(trace)


def test_probabilities_that_are_too_many_together_are_refused() -> None:
    trace = tiny.trace(1)
    trace.top_logprobs[3] = math.log(0.5)
    with pytest.raises(TraceFormatError):
        captured(trace)


def test_a_token_that_stands_in_a_row_twice_is_refused() -> None:
    trace = tiny.trace(1)
    trace.top_ids[3, 1] = trace.top_ids[3, 0]
    with pytest.raises(TraceFormatError):
        captured(trace)


def test_a_token_that_capture_repeats_is_kept_once() -> None:
    """A grammar allows two tokens. Capture then fills a row with places past the end of the vocabulary."""
    logits = torch.full((1, 70), -math.inf)
    logits[0, [7, 69]] = torch.tensor([1.0, 2.0])
    ids, logprobs, mass = top_tokens(logits, 70)
    assert len(set(ids[0].tolist())) < 70
    row = captured(with_tokens(ids, logprobs, mass))[:1]
    found, probs = row.target_ids[0], row.target_probs[0]
    kept = found >= 0
    assert sorted(found[kept].tolist()) == sorted(set(ids[0].tolist()))
    assert found[:2].tolist() == [69, 7]
    assert torch.equal(probs, logprobs[0].float().exp().half())


def test_an_id_beyond_32_bits_is_refused() -> None:
    trace = dataclasses.replace(tiny.trace(1), top_ids=tiny.trace(1).top_ids.long())
    trace.top_ids[3, 1] += 1 << 32
    with pytest.raises(TraceFormatError):
        captured(trace)
