"""From traces to batches: distributions are at their positions, and serving can draft from every root."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch

from aurora_runtime.errors import TraceFormatError
from aurora_runtime.traces import ProposalSource, RequestTrace
from aurora_runtime.training.data import examples as module
from aurora_runtime.training.data import rejected_nodes
from aurora_runtime.training.data.batch import collate
from aurora_runtime.training.data.batch_bound import BatchBound
from aurora_runtime.training.data.examples import Example, examples_of
from aurora_runtime.training.data.rejected_nodes import MAX_STEPS
from aurora_runtime.training.evaluation import evaluate, expected_ids
from aurora_runtime.training.model.vocabulary_map import VocabularyMap
from tests.assets.traces.verify_nodes import nodes_of, target_rows
from tests.unit.training import tiny
from tests.unit.training.trees import tree_trace


@pytest.fixture(scope="module")
def vocabulary() -> VocabularyMap:
    ids = torch.arange(tiny.DRAFT_VOCAB) + 50
    return VocabularyMap.of(ids, tiny.VOCAB)


def by_position(trace: RequestTrace) -> dict[int, int]:
    """The accepted node of every position, found round by round."""
    found, node = {}, 0
    for root, count in zip(trace.root.tolist(), trace.node_count.tolist(), strict=True):
        depth = 0
        for i in range(node, node + count):
            if trace.node_accepted[i]:
                found[root + depth] = i
                depth += 1
        node += count
    return found


def test_shards_of_another_top_k_share_a_batch(vocabulary: VocabularyMap) -> None:
    wide = tiny.trace(5, prompt=8, answer=15)
    narrow = dataclasses.replace(wide, top_ids=wide.top_ids[:, :2], top_logprobs=wide.top_logprobs[:, :2])
    examples = [e for trace in (wide, narrow) for e in examples_of(trace, tiny.VOCAB)]
    target = collate(examples, 3, vocabulary).targets
    assert target.ids.shape == target.probs.shape
    assert target.ids.shape[-1] == wide.top_ids.shape[-1]
    filled = target.ids[len(target.ids) // 2 :, 2:]
    assert bool((filled == -1).all())
    assert bool((target.probs[len(target.probs) // 2 :, 2:] == 0).all())


@pytest.mark.parametrize("hidden_start", [0, 4, 9])
def test_each_step_has_the_target_distribution_of_its_position(vocabulary: VocabularyMap, hidden_start: int) -> None:
    trace = tiny.trace(5, prompt=8, answer=15, hidden_start=hidden_start)
    (example,) = examples_of(trace, tiny.VOCAB)
    batch = collate([example], 3, vocabulary)
    rows, expected = target_rows(batch), expected_ids([example], 3, vocabulary)
    nodes = by_position(trace)
    assert hidden_start + example.first_root == max(hidden_start, trace.prompt_length - 1)
    trained_nodes = 0
    for r in range(example.root_count):
        root = hidden_start + example.first_root + r
        for j in range(3):
            position, row = root + 1 + j, int(rows[j][0, r])
            assert (row >= 0) == (position in nodes)
            if row < 0:
                continue
            trained_nodes += 1
            node = nodes[position]
            target_ids = trace.top_ids[node].long()
            want = vocabulary.to_draft[target_ids].long()
            assert batch.targets.ids[row].tolist() == want.tolist()
            inside = want >= 0
            torch.testing.assert_close(
                batch.targets.probs[row], trace.top_logprobs[node].float().exp() * inside, atol=1e-3, rtol=1e-3
            )
            if j:
                assert int(batch.levels[j - 1].token[0, r]) == int(trace.tokens[position])
            if position + 1 < trace.tokens.shape[0]:
                follows = int(vocabulary.to_draft[int(trace.tokens[position + 1])])
                assert int(expected[0, r, j]) == (follows if follows >= 0 else -2)
    assert trained_nodes >= 3 * (trace.answer_tokens - 4)


def test_long_requests_are_cut_without_losing_or_doubling_a_root(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_ROOTS", 7)
    monkeypatch.setattr(module, "MAX_SLOTS", 12)
    trace = tiny.trace(6, prompt=10, answer=40)
    cut = examples_of(trace, tiny.VOCAB)
    roots = [e.start + e.first_root + r for e in cut for r in range(e.root_count)]
    assert roots == list(range(9, 48))
    assert sum(e.fresh for e in cut) == trace.hidden.shape[0]
    assert all(e.slots <= 12 + MAX_STEPS for e in cut)


def test_examples_hold_the_rejected_nodes_of_their_roots() -> None:
    trace = tree_trace(9, answer=30)
    want = {(n.slot, n.path) for n in nodes_of(trace, rejected_nodes.MAX_STEPS + 1) if not n.accepted}
    found = paths_of(examples_of(trace, tiny.VOCAB))
    assert sorted(found) == sorted(want)


def mixed_sources(trace: RequestTrace) -> RequestTrace:
    """``trace`` with its rounds proposed by each source in turn."""
    return dataclasses.replace(trace, source=(torch.arange(trace.root.numel()) % 3).to(torch.uint8))


def test_a_rejected_node_is_trained_only_where_the_draft_proposed_it() -> None:
    trace = mixed_sources(tree_trace(9, answer=30))
    drafted = {root - 1 for root, source in zip(trace.root.tolist(), trace.source, strict=True) if source == 2}
    want = {(n.slot, n.path) for n in nodes_of(trace, 17) if not n.accepted and n.slot in drafted}
    assert want
    assert set(paths_of(examples_of(trace, tiny.VOCAB))) == want


def test_an_accepted_token_is_trained_whoever_proposed_it() -> None:
    trace = tree_trace(9, answer=30)
    (plain,) = examples_of(trace, tiny.VOCAB)
    (mixed,) = examples_of(mixed_sources(trace), tiny.VOCAB)
    assert torch.equal(mixed.known, plain.known)
    assert torch.equal(mixed.targets.target_ids, plain.targets.target_ids)
    assert torch.equal(mixed.targets.target_probs, plain.targets.target_probs)


def test_a_request_that_was_served_without_speculation_is_trained_and_evaluated(tmp_path: Path) -> None:
    """Rounds of width 1 have a target distribution at each position, nothing rejected, and no acceptance."""
    trace = tiny.trace(5, prompt=8, answer=15, steps=0)
    assert set(trace.node_count.tolist()) == {1}
    assert set(trace.source.tolist()) == {ProposalSource.NONE}
    (example,) = examples_of(trace, tiny.VOCAB)
    assert (example.root_count, len(example.rejected)) == (14, 0)
    draft, vocabulary = tiny.draft_of(tiny.target(tmp_path))
    batch = collate([example], 3, vocabulary, with_rejected=True)
    assert batch.trained_counts[0] == 14
    result = evaluate(draft, [example], vocabulary, 3)
    assert sum(result.tokens) == 14
    assert 1 <= result.acceptance_length <= 4


def test_a_cut_request_keeps_each_rejected_node_with_its_root(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = tree_trace(10, answer=40)
    whole = paths_of(examples_of(trace, tiny.VOCAB))
    monkeypatch.setattr(module, "MAX_ROOTS", 7)
    monkeypatch.setattr(module, "MAX_SLOTS", 12)
    assert paths_of(examples_of(trace, tiny.VOCAB)) == whole


def test_wide_trees_keep_their_shallow_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rejected_nodes, "MAX_REJECTED_PER_ROUND", 3)
    trace = tree_trace(11, answer=30, nodes=12)
    kept = paths_of(examples_of(trace, tiny.VOCAB))
    for slot in {slot for slot, _ in kept}:
        every = sorted(len(n.path) for n in nodes_of(trace, 17) if n.slot == slot and not n.accepted)
        assert sorted(len(path) for s, path in kept if s == slot) == every[:3]


def test_rejected_nodes_beyond_the_answers_end_are_left_out() -> None:
    trace = tree_trace(12, answer=30)
    root, accepted = int(trace.root[-1]), int(trace.accepted[-1])
    shortened = dataclasses.replace(
        trace, tokens=trace.tokens[: root + accepted + 1], hidden=trace.hidden[: root + accepted + 1]
    )
    beyond_the_end = {(n.slot, n.path) for n in nodes_of(trace, 17) if n.slot == root - 1 and not n.accepted}
    path = tuple(trace.tokens[root + 1 : root + accepted + 1].tolist())
    beyond_the_end = {(slot, tokens) for slot, tokens in beyond_the_end if tokens[:accepted] == path}
    whole = paths_of(examples_of(trace, tiny.VOCAB))
    assert beyond_the_end
    assert set(whole) - set(paths_of(examples_of(shortened, tiny.VOCAB))) == beyond_the_end


def paths_of(examples: list[Example]) -> list[tuple[int, tuple[int, ...]]]:
    """Absolute slot of each rejected node, and the tokens from below its root down to the node."""
    found = []
    for e in examples:
        paths: list[tuple[int, ...]] = []
        for slot, depth, up, token in zip(
            e.rejected.slot.tolist(),
            e.rejected.depth.tolist(),
            e.rejected.parent.tolist(),
            e.rejected.token.tolist(),
            strict=True,
        ):
            above = paths[up] if up >= 0 else tuple(e.tokens[slot + 2 : slot + 1 + depth].tolist())
            assert len(above) == depth - 1
            paths.append((*above, token))
            found.append((e.start + slot, paths[-1]))
    return found


def test_ids_outside_the_targets_vocabulary_are_refused() -> None:
    trace = tiny.trace(8)
    bad = trace.tokens.clone()
    bad[3] = tiny.VOCAB
    with pytest.raises(TraceFormatError, match="vocabulary"):
        examples_of(dataclasses.replace(trace, tokens=bad), tiny.VOCAB)
    drafted = trace.node_token.clone()
    drafted[4] = -1
    with pytest.raises(TraceFormatError):
        examples_of(dataclasses.replace(trace, node_token=drafted), tiny.VOCAB)
    parent = trace.node_parent.clone()
    parent[1] = 99
    with pytest.raises(TraceFormatError, match="parent"):
        examples_of(dataclasses.replace(trace, node_parent=parent), tiny.VOCAB)


def test_the_two_directions_of_a_vocabulary_map_agree(tmp_path: Path) -> None:
    model = tiny.target(tmp_path)
    _, vocabulary = tiny.draft_of(model)
    ids = vocabulary.to_target
    assert ids.tolist() == sorted(set(ids.tolist()))
    assert {398, 399} <= set(ids.tolist())  # special tokens, beyond the first ids
    assert ids.numel() == tiny.DRAFT_VOCAB
    assert vocabulary.to_draft[ids].tolist() == list(range(ids.numel()))


@pytest.mark.parametrize(("roots", "slots"), [(1000, 64), (24, 1000), (24, 64)])
def test_batches_bound_the_padded_size(roots: int, slots: int) -> None:
    examples = [
        examples_of(tiny.trace(seed, prompt=4 + seed % 13, answer=6 + seed % 5), tiny.VOCAB)[0] for seed in range(50)
    ]
    groups = BatchBound(roots, slots).batches(examples)
    assert [id(e) for g in groups for e in g] == [id(e) for e in examples]
    assert all(len(g) * max(e.slots for e in g) <= slots for g in groups)
    assert all(len(g) * max(e.root_count for e in g) <= roots for g in groups)
    for group, following in itertools.pairwise(groups):
        more = [*group, following[0]]
        assert len(more) * max(e.slots for e in more) > slots or len(more) * max(e.root_count for e in more) > roots
