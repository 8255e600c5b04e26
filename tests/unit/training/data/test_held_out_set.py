"""A comparison of drafts takes a fixed number of answer tokens, and the set counts what a measurement may use."""

from __future__ import annotations

from aurora_runtime.training.data.examples import examples_of
from aurora_runtime.training.data.held_out_set import HeldOutSet, newest_within
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


def test_requests_are_counted_once_each_until_the_set_has_no_room() -> None:
    examples = tuple(examples_of(tiny.trace(1, answer=20), tiny.VOCAB))
    size = sum(example.nbytes for example in examples)
    by_number, by_bytes, too_small = HeldOutSet(3), HeldOutSet(9, 2 * size), HeldOutSet(9, size - 1)
    for request, (first, second) in enumerate([(1, 1), (2, 2), (None, None), (None, None)]):
        for held_out, expected in ((by_number, first), (by_bytes, second)):
            for _ in range(2):
                held_out.add(request, examples)
            assert held_out.count == expected
    assert too_small.count == 0
    too_small.add(1, examples)
    assert too_small.count is None, "the request is there, although the trainer does not keep it"


def test_a_request_without_examples_is_counted_once_because_a_measurement_uses_its_prompt() -> None:
    examples = tuple(examples_of(tiny.trace(1, answer=20), tiny.VOCAB))
    held_out = HeldOutSet(3)
    for request, shard in [(1, "a"), (1, "b"), (2, "b")]:
        held_out.add(request, (), shard)
    assert (held_out.count, len(held_out), held_out.shards()) == (2, 0, {"b"})
    held_out.add(2, examples, "c")
    assert (held_out.count, len(held_out), held_out.shards()) == (2, 1, {"b", "c"})
    held_out.drop({"b"})
    assert (held_out.count, held_out.shards()) == (1, {"c"})
    for request in range(10, 13):
        held_out.add(request, (), "d")
    assert held_out.count is None
    assert not held_out.left_out
    held_out.add(13, (), "d")
    assert held_out.left_out
    assert held_out.shards() == {"c"}, "a restart need not read what it does not count"
