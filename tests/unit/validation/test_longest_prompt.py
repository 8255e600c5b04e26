"""The longest prompt that every arm of a measurement can answer."""

from __future__ import annotations

import pytest

from aurora_api.v1alpha1.draft import DraftSpec
from aurora_protocol.rope_scaling import RopeScaling
from aurora_runtime.validation.held_out_prompts import context_length, longest_prompt
from tests.unit.fakes import SIZES

SIZES_4K = SIZES.model_copy(update={"max_positions": 4096})
YARN = RopeScaling(rope_type="yarn", factor=4, beta_fast=32, beta_slow=1, original_max_position_embeddings=1024)


@pytest.mark.parametrize(
    ("draft", "answer", "expected"),
    [
        (DraftSpec(), 128, 4096 - 128 - 64),
        (DraftSpec(), 8, 4096 - 8 - 64),
    ],
    ids=["a chain", "a short answer"],
)
def test_a_prompt_leaves_room_for_the_answer_and_the_draft(draft: DraftSpec, answer: int, expected: int) -> None:
    assert longest_prompt(SIZES_4K, draft, answer, ()) == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], 4096),
        (["--tp", "2"], 4096),
        (["--context-length", "2048"], 2048),
        (["--tp", "2", "--context-length=8192", "--enable-metrics"], 8192),
        (["--context-length", "2048", "--context-length", "1024"], 1024),
        (["--context-l", "2048"], 2048),
        (["--context-length", "8k"], 8000),
        (["--context-length", "1.5k"], 1500),
        (["--context-length", "2Ki"], 2048),
        (["--context-length", "long"], None),
        (["--context-length"], None),
        (["--json-model-override-args", '{"max_position_embeddings": 32768}'], None),
        (["--json-model-override-args", "{}", "--context-length", "2048"], 2048),
    ],
)
def test_the_engines_argument_decides_the_context_length(arguments: list[str], expected: int | None) -> None:
    assert context_length(SIZES_4K, arguments) == expected


def test_a_context_length_that_is_not_known_or_too_short_bounds_prompts_accordingly() -> None:
    assert longest_prompt(SIZES_4K, DraftSpec(), 128, ["--json-model-override-args={}"]) is None
    assert longest_prompt(SIZES_4K, DraftSpec(), 8192, ()) == 0, "no prompt fits"


def test_a_scaled_rope_lengthens_the_context_as_in_sglang() -> None:
    linear = RopeScaling(rope_type="linear", factor=2.5)
    assert context_length(SIZES_4K.model_copy(update={"rope_scaling": linear}), []) == 10_240
    assert context_length(SIZES_4K.model_copy(update={"rope_scaling": YARN}), []) == 4096
