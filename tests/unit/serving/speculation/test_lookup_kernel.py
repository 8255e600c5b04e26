"""The device lookup: the torch reference against plain Python, and the Triton kernels against the reference.

The kernels run in Triton's interpreter, which shows neither races nor speed. They are also compiled for real GPUs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as compile_kernel

from aurora_runtime.serving.speculation import lookup_kernel
from aurora_runtime.serving.speculation.lookup_kernel import TokenHistory, propose
from aurora_runtime.serving.speculation.lookup_reference import MAX_ROWS, POSITION_BITS, MatchBounds
from tests.unit.serving.speculation import interpreted_lookup
from tests.unit.serving.speculation.interpreted_lookup import BOUNDS, MAX_TOKENS, histories, history_of


def naive(rows: list[list[int]], row: int, count: int, all_rows: bool) -> tuple[list[int], int]:
    """The proposed tokens and the match length, found by trying every place."""
    own, best, proposed = rows[row], (0, False, 0, 0), list[int]()
    for source, text in enumerate(rows):
        if (source != row and not all_rows) or max(len(text), len(own)) > MAX_TOKENS:
            continue
        for place in range(1, len(text)):
            matched = 0
            while matched < min(BOUNDS.longest, place, len(own)) and text[place - 1 - matched] == own[-1 - matched]:
                matched += 1
            rank = (matched, source == row, source, place)
            if matched >= BOUNDS.shortest and rank > best:
                best, proposed = rank, text[place:]
                while source == row and len(proposed) < count:
                    proposed = proposed + text[place:]
    return proposed[:count], best[0]


@given(histories, st.integers(1, 9), st.booleans())
def test_the_reference_finds_what_trying_every_place_finds(rows: list[list[int]], count: int, all_rows: bool) -> None:
    batch = torch.arange(len(rows)).flip(0)
    found = propose(history_of(rows), batch, count, bounds=BOUNDS, longest=MAX_TOKENS, all_rows=all_rows)
    for index, row in enumerate(batch.tolist()):
        tokens, matched = naive(rows, row, count, all_rows)
        assert found.tokens[index].tolist() == tokens + [0] * (count - len(tokens))
        assert found.available[index].item() == len(tokens)
        assert found.match_lengths[index].item() == matched


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
    assert propose(history, rows, 3, bounds=BOUNDS, longest=20, all_rows=False).tokens.tolist() == [[1, 2, 1]]
    history.append(rows, torch.tensor([[1]]), torch.tensor([1]))
    assert propose(history, rows, 3, bounds=BOUNDS, longest=21, all_rows=True).available.tolist() == [0]


@pytest.mark.parametrize(("rows", "max_tokens"), [(0, 5), (MAX_ROWS + 1, 5), (5, 0), (5, 1 << POSITION_BITS)])
def test_a_history_that_a_search_cannot_address_is_refused(rows: int, max_tokens: int) -> None:
    with pytest.raises(ValueError, match="too many"):
        TokenHistory.allocate(rows, max_tokens, "meta")


@pytest.mark.parametrize(("shortest", "longest"), [(0, 3), (4, 3), (1, 1 << 16)])
def test_match_bounds_that_a_search_cannot_count_are_refused(shortest: int, longest: int) -> None:
    with pytest.raises(ValueError, match="cannot be looked up"):
        MatchBounds(shortest, longest)


SEARCH = {"SHORTEST": 2, "LONGEST": 8, "BLOCK": 1024}
POINTERS = {"tokens": "*i32", "lengths": "*i32", "rows": "*i64", "best": "*i64"}


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize(
    ("kernel", "types", "constants"),
    [
        ("_find_best_match", {"batch": "i32", "stride": "i32", "max_tokens": "i32"}, {**SEARCH, "ALL_ROWS": False}),
        ("_find_best_match", {"batch": "i32", "stride": "i32", "max_tokens": "i32"}, {**SEARCH, "ALL_ROWS": True}),
        (
            "_write_proposals",
            {"proposals": "*i64", "available": "*i32", "match_lengths": "*i32", "count": "i32", "stride": "i32"},
            {"BLOCK": 16},
        ),
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
