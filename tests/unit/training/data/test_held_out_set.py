"""A comparison of drafts takes a fixed number of answer tokens, and the set counts what a measurement may use."""

from __future__ import annotations

from aurora_api.v1alpha1.validation import ValidationSpec
from aurora_runtime.training.data.examples import examples_of
from aurora_runtime.training.data.held_out_set import HeldOutSet, newest_within
from aurora_runtime.training.settings import DEFAULT_POLICY
from tests.unit.training import tiny


def test_the_newest_examples_within_the_bound_are_compared() -> None:
    examples = [example for seed in range(4) for example in examples_of(tiny.trace(seed, answer=20), tiny.VOCAB)]
    tokens = [example.root_count for example in examples]
    for count in range(1, len(examples) + 1):
        held = sum(tokens[:count])
        assert list(newest_within(examples, held)) == examples[:count]
        assert list(newest_within(examples, held - 1)) == examples[: max(1, count - 1)]


def test_requests_are_counted_once_each_whether_they_are_kept_or_not() -> None:
    examples = tuple(examples_of(tiny.trace(1, answer=20), tiny.VOCAB))
    size = sum(example.nbytes for example in examples)
    for limit_bytes in (1 << 30, 2 * size, size - 1):
        held_out = HeldOutSet(1, limit_bytes, limit_counted=3)
        assert held_out.count == 0
        for request, expected in enumerate([1, 2, None, None]):
            for _ in range(2):
                held_out.add(request, examples)
            assert held_out.count == expected, "three are as many as are counted"


def test_a_request_that_no_measurement_could_use_is_compared_and_not_counted() -> None:
    examples = tuple(examples_of(tiny.trace(1, answer=20), tiny.VOCAB))
    held_out = HeldOutSet(3)
    held_out.add(1, examples, "a")
    held_out.add(1, examples, "b", measurable=False)
    held_out.add(2, examples, "b", measurable=False)
    assert (held_out.count, len(held_out)) == (1, 2), "an earlier turn of a conversation was short enough"
    held_out.drop({"a"})
    assert (held_out.count, len(held_out)) == (0, 2)


def test_a_request_without_examples_is_counted_once_because_a_measurement_uses_its_prompt() -> None:
    examples = tuple(examples_of(tiny.trace(1, answer=20), tiny.VOCAB))
    held_out = HeldOutSet(3, limit_counted=4)
    for request, shard in [(1, "a"), (1, "b"), (2, "b")]:
        held_out.add(request, (), shard)
    assert (held_out.count, len(held_out), held_out.shards_to_restore()) == (2, 0, set())
    held_out.add(2, examples, "c")
    assert (held_out.count, len(held_out), held_out.shards_to_restore()) == (2, 1, {"c"})
    held_out.drop({"b"})
    assert (held_out.count, held_out.shards_to_restore()) == (1, {"c"})
    for request in range(10, 13):
        held_out.add(request, (), "d")
    assert held_out.count is None
    assert held_out.shards_to_restore() == {"c"}, "a restart reads no shard just to count"


def test_as_many_requests_are_counted_as_a_measurement_at_the_highest_concurrency_needs() -> None:
    needed = ValidationSpec(concurrencies=[1, 1024]).prompts_needed
    held_out = HeldOutSet(DEFAULT_POLICY.held_out_requests)
    for request in range(needed - 1):
        held_out.add(request, (), "shard")
    assert held_out.count == needed - 1 > DEFAULT_POLICY.held_out_requests, "one too few delays the measurement"
    held_out.add(needed, (), "shard")
    assert held_out.count is None
