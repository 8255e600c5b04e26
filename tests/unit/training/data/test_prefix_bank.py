"""States missing after a prefix-cache hit are borrowed from traces with the same prefix."""

from __future__ import annotations

import dataclasses
import weakref

import torch

from aurora_runtime.traces import RequestTrace
from aurora_runtime.training.data.examples import examples_of
from aurora_runtime.training.data.kept_states import HeldBytes, KeptStates
from aurora_runtime.training.data.prefix_bank import PrefixBank
from tests.unit.training import tiny


def cached(trace: RequestTrace, length: int) -> RequestTrace:
    """``trace`` as captured when its first ``length`` positions came from the prefix cache."""
    return dataclasses.replace(trace, hidden_start=length, hidden=trace.hidden[length:])


def test_states_missing_after_a_prefix_cache_hit_are_borrowed() -> None:
    first, other = tiny.trace(1, prompt=12), tiny.trace(2, prompt=12)
    shared = torch.cat([first.tokens[:8], other.tokens[8:]])
    states = torch.cat([first.hidden[:8], other.hidden[8:]])
    second = dataclasses.replace(other, tokens=shared, hidden=states)
    bank = PrefixBank(1 << 28, 256)
    assert torch.equal(tiny.whole(bank.complete(first)), first.hidden)
    whole = bank.complete(cached(second, 8))
    assert whole.start == 0
    assert torch.equal(tiny.whole(whole), states)
    # In a chain of conversations, the third shares with the second a prefix that the first lacks.
    third = dataclasses.replace(second, tokens=second.tokens.clone())
    assert torch.equal(tiny.whole(bank.complete(cached(third, 11))), states)
    # No state is borrowed across a different token, or from an empty bank.
    stranger = dataclasses.replace(second, tokens=torch.cat([shared[:3] + 1, shared[3:]]))
    assert bank.complete(cached(stranger, 8)).start == 8
    assert PrefixBank(1 << 28, 256).complete(cached(second, 8)).start == 8


def test_borrowed_states_do_not_count_as_fresh() -> None:
    trace = tiny.trace(1, prompt=12)
    bank = PrefixBank(1 << 28, 256)
    bank.complete(trace)
    later = cached(trace, 7)
    (example,) = examples_of(later, tiny.VOCAB, bank.complete(later))
    assert (example.slots, example.fresh) == (trace.hidden.shape[0], trace.hidden.shape[0] - 7)


def test_the_prefix_bank_is_bounded() -> None:
    size = HeldBytes(tiny.trace(0).tokens.clone(), KeptStates.of(tiny.trace(0))).total
    bank = PrefixBank(limit_bytes=3 * size, limit_traces=100)
    traces = [tiny.trace(seed) for seed in range(9)]
    for trace in traces:
        bank.complete(trace)
    found = [bank.complete(cached(t, 5)).start == 0 for t in reversed(traces)]
    assert found[:2] == [True, True]
    assert not any(found[3:])


def test_the_prefix_bank_keeps_nothing_that_no_trace_can_borrow() -> None:
    """The tensors of a trace may be views of those of its whole shard."""
    bank, trace = PrefixBank(limit_bytes=1 << 20, limit_traces=100), tiny.trace(0)
    kept = [weakref.ref(tensor) for tensor in (trace.hidden, trace.tokens, trace.top_ids, trace.node_token)]
    bank.complete(trace)
    del trace
    assert [reference() for reference in kept] == [None] * len(kept)
    assert bank.complete(cached(tiny.trace(0), 5)).start == 0
