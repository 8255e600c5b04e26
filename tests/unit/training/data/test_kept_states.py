"""States are kept in 8 bits where that loses nothing, once for all who share them, and train as the trace's would."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from aurora_protocol.pod_settings import StateType
from aurora_runtime.packed_states import PACKED_TYPE, pack
from aurora_runtime.traces import RequestTrace, decode, encode
from aurora_runtime.training.data import kept_states
from aurora_runtime.training.data.examples import Example, examples_of
from aurora_runtime.training.data.kept_states import HeldBytes, KeptStates
from aurora_runtime.training.data.prefix_bank import PrefixBank
from aurora_runtime.training.optim.recipe import Recipe
from aurora_runtime.training.optim.session import Session
from tests.unit.training import tiny
from tests.unit.training.trees import tree_trace


def captured(trace: RequestTrace) -> RequestTrace:
    """``trace`` as a shard in 8 bits gives it."""
    return next(decode(encode([trace], StateType.FLOAT8)))


def behind_a_shared_prompt(requests: int, shared: int) -> list[RequestTrace]:
    """Requests whose prompts begin alike, as captured behind a prefix cache: only the first has the states of it."""
    first = tiny.trace(0, prompt=shared + 40, answer=160)
    traces = [captured(first)]
    for number in range(1, requests):
        own = tiny.trace(number, prompt=shared + 40, answer=160, hidden_start=shared)
        tokens = torch.cat([first.tokens[:shared], own.tokens[shared:]])
        traces.append(captured(dataclasses.replace(own, tokens=tokens)))
    return traces


@pytest.mark.parametrize("packed", [True, False])
def test_states_keep_their_bits(packed: bool) -> None:
    trace = tiny.trace(1, prompt=150, answer=20)
    trace = captured(trace) if packed else trace
    states = KeptStates.of(trace)
    assert {block.states.dtype for block in states.blocks} == {PACKED_TYPE if packed else torch.bfloat16}
    assert torch.equal(tiny.whole(states).view(torch.int16), trace.hidden.view(torch.int16))
    assert torch.equal(tiny.whole(states[70:140]), trace.hidden[70:140])


def test_a_session_learns_the_same_bits_from_packed_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traces = [captured(tree_trace(seed, prompt=70 + seed)) for seed in range(4)]
    packed = [example for trace in traces for example in examples_of(trace, tiny.VOCAB)]
    monkeypatch.setattr(kept_states, "pack", lambda states: pack(states * 0))  # so that no state is kept packed
    plain = [example for trace in traces for example in examples_of(trace, tiny.VOCAB)]
    assert packed[0].aux.blocks[0].states.dtype != plain[0].aux.blocks[0].states.dtype
    found = []
    for examples in (packed, plain, packed[:2] + plain[2:]):
        session = Session(*tiny.draft_of(tiny.target(tmp_path)), Recipe(), torch.device("cpu"))
        for _ in range(3):
            session.step(examples)
        found.append(session.state())
    for other in found[1:]:
        assert all(torch.equal(tensor, other[name]) for name, tensor in found[0].items())


def addresses(states: KeptStates) -> set[int]:
    """Of the memory that ``states`` keep."""
    return {block.states.untyped_storage().data_ptr() for block in states.blocks}


def test_a_borrower_keeps_no_states_of_other_tokens_of_its_lender() -> None:
    """Shared memory counts once. So what is dropped of the lender is gone."""
    bank = PrefixBank(1 << 28, 256)
    lender, borrower = behind_a_shared_prompt(2, 100)
    lent, borrowed = bank.complete(lender), bank.complete(borrower)
    assert torch.equal(tiny.whole(borrowed)[:100], lender.hidden[:100])
    assert addresses(lent) & addresses(borrowed) == addresses(lent[:64])
    alone = HeldBytes(lent).total + HeldBytes(borrowed).total
    assert HeldBytes(lent, borrowed).total == alone - lent.blocks[0].states.nbytes - lent.blocks[0].scale.nbytes


def test_the_examples_of_a_cut_request_share_its_states() -> None:
    examples: list[Example] = examples_of(captured(tiny.trace(3, prompt=600, answer=1400)), tiny.VOCAB)
    assert len(examples) == 3
    assert HeldBytes([each.aux for each in examples]).total < 0.5 * sum(HeldBytes(each.aux).total for each in examples)
    held = HeldBytes(examples)
    for example in examples:
        held.remove(example)
    assert held.total == 0
