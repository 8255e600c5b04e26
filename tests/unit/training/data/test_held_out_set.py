"""A comparison of drafts takes a fixed number of answer tokens."""

from __future__ import annotations

from aurora_runtime.training.data.examples import examples_of
from aurora_runtime.training.data.held_out_set import newest_within
from tests.unit.training import tiny


def test_the_newest_examples_within_the_bound_are_compared() -> None:
    examples = [example for seed in range(4) for example in examples_of(tiny.trace(seed, answer=20), tiny.VOCAB)]
    tokens = [example.root_count for example in examples]
    for count in range(1, len(examples) + 1):
        held = sum(tokens[:count])
        assert list(newest_within(examples, held)) == examples[:count]
        assert list(newest_within(examples, held - 1)) == examples[: max(1, count - 1)]


def test_a_long_request_alone_is_compared_all_the_same() -> None:
    examples = examples_of(tiny.trace(1, answer=20), tiny.VOCAB)
    assert list(newest_within(examples, 1)) == examples[:1]
    assert list(newest_within([], 1)) == []
