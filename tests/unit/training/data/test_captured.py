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


def with_value(name: str, place: tuple[int, ...], value: float) -> RequestTrace:
    """A trace with ``value`` at a place of a field."""
    trace = tiny.trace(1)
    if name == "top_ids":
        trace = dataclasses.replace(trace, top_ids=trace.top_ids.long())
    getattr(trace, name)[place] = value
    return trace


NO_DISTRIBUTIONS: dict[str, RequestTrace] = {
    "an infinite logarithm": with_value("top_logprobs", (3, 2), math.inf),
    "a logarithm that is no number": with_value("top_logprobs", (3, 2), math.nan),
    "a probability above 1": with_value("top_logprobs", (3, 2), 1.0),
    "probabilities that are too many together": with_value("top_logprobs", (3,), math.log(0.5)),
    "a mass that is no number": with_value("uncaptured_mass", (3,), math.nan),
    "a negative mass": with_value("uncaptured_mass", (3,), -0.5),
    "a mass above 1": with_value("uncaptured_mass", (3,), 1.1),
    "a token twice": with_value("top_ids", (3, 1), int(tiny.trace(1).top_ids[3, 0])),
    "an id beyond 32 bits": with_value("top_ids", (3, 1), 1 << 32),
}


@pytest.mark.parametrize("trace", NO_DISTRIBUTIONS.values(), ids=NO_DISTRIBUTIONS)
def test_what_is_no_distribution_is_refused(trace: RequestTrace) -> None:
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
