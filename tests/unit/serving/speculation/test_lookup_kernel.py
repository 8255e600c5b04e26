"""The device lookup proposes what the host's lookup proposes, and the Triton kernels what their torch reference does.

The kernels run in Triton's interpreter, which shows neither races nor speed. They are also compiled for real GPUs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as compile_kernel

from aurora_api.v1alpha1.draft import LookupScope
from aurora_runtime.serving.speculation import lookup_index, lookup_kernel
from aurora_runtime.serving.speculation.lookup_index import LookupIndex
from aurora_runtime.serving.speculation.lookup_kernel import propose
from aurora_runtime.serving.speculation.lookup_reference import POSITION_BITS
from aurora_runtime.serving.speculation.suffix_table import Slots, SuffixTable
from aurora_runtime.serving.speculation.token_history import TokenHistory
from tests.unit.serving.speculation import interpreted_lookup
from tests.unit.serving.speculation.interpreted_lookup import MAX_TOKENS, histories, history_of


class ExactTable(SuffixTable):
    """A table without collisions, which forgets nothing."""

    def __init__(self, orders: Sequence[int], slots: int) -> None:
        super().__init__(orders, slots)
        self._orders = orders
        self._slots: dict[tuple[int, ...], int] = {}
        self._places: dict[int, int] = {}

    def slots_of(self, tokens: array[int], end: int, salts: Sequence[int]) -> Slots:
        orders = [order for order in reversed(self._orders) if order <= end]
        suffixes = [(order, (salt, *tokens[end - order : end])) for order in orders for salt in salts]
        return [(order, self._slots.setdefault(suffix, len(self._slots))) for order, suffix in suffixes]

    def find(self, slots: Slots) -> Iterator[tuple[int, int]]:
        return ((order, self._places[slot]) for order, slot in slots if slot in self._places)

    def put(self, slots: Slots, place: int) -> None:
        self._places.update({slot: place for _, slot in slots})

    def put_range(self, tokens: array[int], first: int, last: int, spaces: Sequence[int], place: int) -> None:
        for end in range(first, last):
            self.put(self.slots_of(tokens, end, self.salts_of(spaces)), place + end)


@given(rows=histories, count=st.integers(1, 9), prompt=st.integers(0, MAX_TOKENS))
def test_the_device_proposes_what_the_hosts_lookup_proposes_for_the_same_texts(
    rows: list[list[int]], count: int, prompt: int
) -> None:
    batch = torch.arange(len(rows)).flip(0)
    found = propose(history_of(rows), batch, count, longest=MAX_TOKENS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lookup_index, "SuffixTable", ExactTable)
        index = LookupIndex(LookupScope.REQUEST, 16)
    for place, row in enumerate(batch.tolist()):
        index.begin(str(row), rows[row][:prompt])
        index.extend(str(row), rows[row][prompt:])
        expected = index.propose(str(row), count)
        if len(rows[row]) > MAX_TOKENS:  # it outgrew its row
            expected = lookup_index.Proposal()
        assert found.tokens[place].tolist() == list(expected.tokens or [0] * count)
        assert found.match_lengths[place].item() == expected.match_length


def test_the_kernels_find_what_the_reference_finds() -> None:
    # Triton decides at its import whether kernels are interpreted.
    command = [sys.executable, "-m", interpreted_lookup.__name__]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


@given(st.lists(st.tuples(st.lists(st.integers(1, 9), min_size=3, max_size=3), st.integers(0, 3)), max_size=20))
def test_appended_tokens_stand_at_the_end_of_their_text(rounds: list[tuple[list[int], int]]) -> None:
    history, expected = history_of([[7], [1, 2], [8]], max_tokens=30), [1, 2]
    for tokens, count in rounds:
        zero = [0, 0, 0]
        history.append(torch.tensor([2, 1]), torch.tensor([zero, tokens]), torch.tensor([0, count]))
        expected += tokens[:count]
    assert history.lengths.tolist() == [1, len(expected), 1]
    assert history.tokens[1, : len(expected)].tolist()[:30] == expected[:30]
    assert history.tokens[[0, 2], 0].tolist() == [7, 8]


def test_a_request_that_outgrew_its_row_gets_no_proposal() -> None:
    history = history_of([[1, 2] * 10], max_tokens=20)
    rows = torch.tensor([0])
    assert propose(history, rows, 3, longest=20).tokens.tolist() == [[1, 2, 1]]
    history.append(rows, torch.tensor([[1]]), torch.tensor([1]))
    assert propose(history, rows, 3, longest=21).match_lengths.tolist() == [0]


@pytest.mark.parametrize(("rows", "max_tokens"), [(0, 5), (5, 0), (5, 1 << POSITION_BITS)])
def test_a_history_that_a_search_cannot_address_is_refused(rows: int, max_tokens: int) -> None:
    with pytest.raises(ValueError, match="cannot be looked up"):
        TokenHistory.allocate(rows, max_tokens, "meta")


POINTERS = {"tokens": "*i32", "lengths": "*i32", "rows": "*i64", "best": "*i32"}
PROPOSALS = {"proposals": "*i64", "match_lengths": "*i32", "count": "i32", "stride": "i32"}


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize(
    ("kernel", "types", "constants"),
    [
        ("_find_best_match", {"stride": "i32", "max_tokens": "i32"}, {"BLOCK": 1024}),
        ("_write_proposals", PROPOSALS, {"BLOCK": 16}),
    ],
)
def test_the_kernels_compile_for_gpus(
    architecture: int, kernel: str, types: dict[str, str], constants: dict[str, Any]
) -> None:
    function = getattr(lookup_kernel, kernel)
    signature = {**POINTERS, **types, **dict.fromkeys(constants, "constexpr")}
    source = ASTSource(function, {name: signature[name] for name in function.arg_names}, constants)
    compiled = compile_kernel(source, target=GPUTarget("cuda", architecture, 32))
    assert compiled.asm["cubin"]
    assert compiled.metadata.shared < 48 * 1024
