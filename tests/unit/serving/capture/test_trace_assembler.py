"""Assembly against a simulated engine that knows the right token and state of every position."""

from __future__ import annotations

import gc
from dataclasses import dataclass, replace
from types import FunctionType, ModuleType

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from aurora_runtime.held_out_split import prompt_hash
from aurora_runtime.serving.capture.trace_assembler import Commit, PromptChunk, TraceAssembler, VerifyRound
from aurora_runtime.traces import ProposalSource, RequestTrace, decode, encode

TOP_TOKENS = 3
VOCAB = 50


def states(tokens: list[int], start: int, end: int) -> Tensor:
    """States that encode their position and token: ``[end - start, 2]``."""
    return torch.tensor([[at, tokens[at]] for at in range(start, end)], dtype=torch.bfloat16).reshape(-1, 2)


def links(parents: list[int]) -> tuple[list[int], list[int]]:
    """SGLang's links of a tree given by its parents."""
    first, sibling = [-1] * len(parents), [-1] * len(parents)
    last: dict[int, int] = {}
    for node, parent in enumerate(parents):
        if parent < 0:
            continue
        if parent in last:
            sibling[last[parent]] = node
        else:
            first[parent] = node
        last[parent] = node
    return first, sibling


def verify_round(
    rid: str,
    nodes: list[int],
    parents: list[int],
    path: list[int],
    hidden: Tensor,
    commit: Commit,
    *,
    source: ProposalSource = ProposalSource.NONE,
    finished: bool,
) -> VerifyRound:
    """A round over a tree of tokens, of which the target accepts ``path``."""
    first, sibling = links(parents)
    return VerifyRound(
        rid=rid,
        version=3,
        source=source,
        draft_tokens=np.array(nodes),
        next_token=np.array(first),
        next_sibling=np.array(sibling),
        path=np.array(path),
        hidden=hidden,
        top_ids=np.tile(np.arange(TOP_TOKENS, dtype=np.int32), (len(nodes), 1)),
        top_logprobs=np.full((len(nodes), TOP_TOKENS), -1.0, np.float16),
        uncaptured_mass=np.zeros(len(nodes), np.float16),
        commit=commit,
        finished=finished,
    )


@dataclass
class Simulated:
    """One request as the engine would serve it: its records in order, and the client's tokens."""

    events: list[PromptChunk | VerifyRound]
    prompt: list[int]
    answer: list[int]
    cached: int
    paths: list[tuple[int, int]]  # root position and visible accepted drafts of each round
    all_parents: list[int]
    sources: list[ProposalSource]


def tree(draw: st.DrawFn, root: int, accepted: list[int]) -> tuple[list[int], list[int], list[int]]:
    """Tokens and parents of a tree, and its accepted path. Nodes of the path may have a rejected sibling."""
    tokens, parents, path = [root], [-1], [0]
    for want in accepted:
        if draw(st.booleans()):
            parents.append(path[-1])
            tokens.append(VOCAB + 1)
        parents.append(path[-1])
        tokens.append(want)
        path.append(len(tokens) - 1)
    return tokens, parents, path


@st.composite
def simulated(draw: st.DrawFn, rid: str = "r") -> Simulated:
    token = st.integers(0, VOCAB - 1)
    prompt = draw(st.lists(token, min_size=1, max_size=12))
    answer = draw(st.lists(token, min_size=2, max_size=20))
    full = prompt + answer
    cached = draw(st.integers(0, len(prompt) - 1))
    events: list[PromptChunk | VerifyRound] = []
    cuts = sorted(draw(st.sets(st.integers(cached + 1, len(prompt)), max_size=3)) | {len(prompt)})
    at = cached
    for cut in cuts:
        commit = Commit(0, tuple(answer[:1])) if cut == len(prompt) else None
        events.append(PromptChunk(rid, prompt, at, states(full, at, cut), commit, finished=False))
        at = cut
    done, paths, all_parents, sources = 1, [], [], []
    while done < len(answer):
        if draw(st.integers(0, 9)) == 0:  # retracted: prefilled again with its answer, behind some cached prefix
            start = draw(st.integers(0, len(prompt) + done - 1))
            commit = Commit(done, (answer[done],))
            chunk = states(full, start, len(prompt) + done)
            done += 1
            events.append(PromptChunk(rid, prompt, start, chunk, commit, finished=done == len(answer)))
            continue
        root = len(prompt) + done - 1
        accepted = draw(st.integers(0, 3))
        visible = min(accepted, len(answer) - done)
        committed = answer[done : done + accepted + 1]
        drafted = [*answer[done : done + visible], *([VOCAB] * (accepted - visible))]
        tokens, parents, path = tree(draw, full[root], drafted)
        done += len(committed)
        # A round of width 1 has no proposals. In a wider one, a request without a source has padding.
        sources.append(draw(st.sampled_from(ProposalSource)) if len(tokens) > 1 else ProposalSource.NONE)
        beyond = torch.tensor([[0.0, 0.0]] * (accepted - visible), dtype=torch.bfloat16).reshape(-1, 2)
        hidden = torch.cat([states(full, root, root + visible + 1), beyond])
        commit = Commit(done - len(committed), tuple(committed))
        finished = done == len(answer)
        events.append(verify_round(rid, tokens, parents, path, hidden, commit, source=sources[-1], finished=finished))
        paths.append((root, visible))
        all_parents += parents
    return Simulated(events, prompt, answer, cached, paths, all_parents, sources)


def assembler(max_tokens: int = 10_000, max_open_bytes: int = 1 << 30) -> TraceAssembler:
    return TraceAssembler(top_tokens=TOP_TOKENS, max_tokens=max_tokens, max_open_bytes=max_open_bytes)


def feed(target: TraceAssembler, events: list[PromptChunk | VerifyRound]) -> list[RequestTrace]:
    return [trace for event in events if (trace := target.add(event)) is not None]


@given(simulated(), st.binary(max_size=32))
def test_a_trace_names_the_keyed_hash_of_its_prompt(request: Simulated, key: bytes) -> None:
    target = TraceAssembler(top_tokens=TOP_TOKENS, max_tokens=10_000, max_open_bytes=1 << 30, traffic_key=key)
    assert all(trace.request == prompt_hash(request.prompt, key) for trace in feed(target, request.events))


@given(simulated())
def test_a_trace_holds_the_tokens_that_the_client_received(request: Simulated) -> None:
    target = assembler()
    traces = feed(target, request.events)
    assert not target.dropped
    assert len(target) == 0
    if not request.paths:
        assert traces == []
        return
    (trace,) = decode(encode(traces))
    full = request.prompt + request.answer
    assert trace.tokens.tolist() == full
    assert trace.prompt_length == len(request.prompt)
    assert trace.request == prompt_hash(request.prompt)
    assert trace.hidden_start <= request.cached
    end = trace.hidden_start + trace.hidden.shape[0]
    assert len(full) - 1 <= end <= len(full)
    assert torch.equal(trace.hidden, states(full, trace.hidden_start, end))
    assert list(zip(trace.root.tolist(), trace.accepted.tolist(), strict=True)) == request.paths
    assert trace.node_parent.tolist() == request.all_parents
    assert trace.source.tolist() == request.sources
    at = 0
    for root, nodes, accepted in zip(
        trace.root.tolist(), trace.node_count.tolist(), trace.accepted.tolist(), strict=True
    ):
        path = [node for node in range(at, at + nodes) if trace.node_accepted[node]]
        assert [int(trace.node_token[node]) for node in path] == full[root : root + accepted + 1]
        at += nodes


@given(simulated(rid="a"), simulated(rid="b"), st.randoms(use_true_random=False))
def test_requests_in_one_batch_do_not_mix(a: Simulated, b: Simulated, order: object) -> None:
    target = assembler()
    queues = [list(a.events), list(b.events)]
    traces = []
    while any(queues):
        queue = order.choice([queue for queue in queues if queue])  # type: ignore[attr-defined]
        traces += feed(target, [queue.pop(0)])
    wanted = sorted(r.prompt + r.answer for r in (a, b) if r.paths)
    assert sorted(trace.tokens.tolist() for trace in traces) == wanted


@given(simulated(), st.data())
def test_a_request_that_lost_a_record_is_dropped_completely(request: Simulated, data: st.DataObject) -> None:
    lost = data.draw(st.integers(0, len(request.events) - 1))
    target = assembler()
    traces = feed(target, request.events[:lost] + request.events[lost + 1 :])
    for trace in traces:  # a missing chunk does no harm when a retraction computed it again
        full = request.prompt + request.answer
        assert trace.tokens.tolist() == full
        end = trace.hidden_start + trace.hidden.shape[0]
        assert torch.equal(trace.hidden, states(full, trace.hidden_start, end))


@given(simulated(), st.data())
def test_contradicting_records_are_never_written(request: Simulated, data: st.DataObject) -> None:
    rounds = [i for i, event in enumerate(request.events) if isinstance(event, VerifyRound)]
    if not rounds:
        return
    at = data.draw(st.sampled_from(rounds))
    event = request.events[at]
    assert isinstance(event, VerifyRound)
    wrong = event.draft_tokens.copy()
    wrong[0] += 1
    target = assembler()
    events = [*request.events[:at], replace(event, draft_tokens=wrong), *request.events[at + 1 :]]
    assert feed(target, events) == []
    assert target.dropped == {"path": 1}


def long_request(rid: str, prompt: int, answer: int) -> list[PromptChunk | VerifyRound]:
    tokens = list(range(prompt + answer))
    events: list[PromptChunk | VerifyRound] = [
        PromptChunk(rid, tokens[:prompt], 0, states(tokens, 0, prompt), Commit(0, (tokens[prompt],)), finished=False)
    ]
    for i in range(1, answer):
        root = prompt + i - 1
        hidden, commit = states(tokens, root, root + 1), Commit(i, (tokens[root + 1],))
        events.append(verify_round(rid, [tokens[root]], [-1], [0], hidden, commit, finished=i == answer - 1))
    return events


def drafted_request(rid: str, source: ProposalSource) -> list[PromptChunk | VerifyRound]:
    """A prompt of 3 tokens, and one round in which ``source`` proposes 2 tokens, of which the target accepts 1."""
    tokens = list(range(6))
    prompt = PromptChunk(rid, tokens[:3], 0, states(tokens, 0, 3), Commit(0, (3,)), finished=False)
    hidden, commit = states(tokens, 3, 5), Commit(1, (4, 5))
    return [prompt, verify_round(rid, [3, 4, 9], [-1, 0, 1], [0, 1], hidden, commit, source=source, finished=True)]


def test_a_long_request_is_cut_and_its_further_records_are_ignored() -> None:
    target = assembler(max_tokens=10)
    traces = feed(target, long_request("r", prompt=4, answer=20))
    assert [trace.tokens.shape[0] for trace in traces] == [10]
    assert not target.dropped
    assert len(target) == 0


def test_a_prompt_beyond_the_limit_is_dropped() -> None:
    target = assembler(max_tokens=10)
    assert feed(target, long_request("r", prompt=12, answer=3)) == []
    assert target.dropped == {"long prompt": 1}


def test_memory_for_unfinished_requests_is_bounded() -> None:
    target = assembler(max_open_bytes=100)
    for i in range(20):
        feed(target, long_request(f"r{i}", prompt=10, answer=5)[:2])
    assert target.dropped["memory"] == 18
    assert len(target) == 2


def test_an_open_request_keeps_its_own_states_and_not_those_of_the_whole_batch() -> None:
    """The records' states are views of the batch's tensor, in which other requests have rows too."""
    target = assembler()
    for event in long_request("r", prompt=4, answer=20)[:-1]:
        batch = torch.zeros(1000, 2, dtype=torch.bfloat16)
        own = batch[: event.hidden.shape[0]]
        own.copy_(event.hidden)
        assert feed(target, [replace(event, hidden=own)]) == []
    assert kept_bytes(target) == 22 * states([0], 0, 1).nbytes


def kept_bytes(root: object) -> int:
    """The memory of all tensors that ``root`` leads to."""
    seen, storages, waiting = set[int](), dict[int, int](), [root]
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, type | ModuleType | FunctionType):
            continue
        seen.add(id(one))
        if isinstance(one, Tensor):
            storage = one.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        else:
            waiting += gc.get_referents(one)
    return sum(storages.values())


def test_requests_without_an_end_do_not_take_the_memory_of_running_ones() -> None:
    """SGLang gives no last record to a request that it aborts while the request waits."""
    state_bytes = states([0], 0, 1).nbytes
    target = assembler(max_open_bytes=(2 * 20 + 10) * state_bytes)
    for i in range(2):
        assert feed(target, long_request(f"aborted{i}", prompt=20, answer=5)[:1]) == []
    traces = [trace for i in range(10) for trace in feed(target, long_request(f"r{i}", prompt=3, answer=20))]
    assert len(traces) == 10
    assert target.dropped == {"memory": 1}, "as many as there was need for"


def test_running_requests_beyond_the_memory_are_not_dropped_for_new_ones() -> None:
    """A batch of 12 requests, each in another part of its answer, of which 4 fit."""
    target = assembler(max_open_bytes=4 * 30 * states([0], 0, 1).nbytes)
    running: list[list[PromptChunk | VerifyRound]] = []
    traces = started = 0
    for number in range(100):
        if number % 2 == 0:
            running.append(long_request(f"r{started}", prompt=6, answer=25))
            started += 1
        for events in running:
            traces += target.add(events.pop(0)) is not None
        running = [events for events in running if events]
    assert traces > started / 4


def test_a_round_computed_after_the_end_of_a_request_is_ignored() -> None:
    events = long_request("r", prompt=3, answer=4)
    extra = events[-1]
    assert isinstance(extra, VerifyRound)
    target = assembler()
    ahead = replace(extra, commit=None, finished=True)
    assert len(feed(target, [*events, ahead])) == 1
    assert not target.dropped


def test_an_aborted_request_keeps_its_committed_tokens() -> None:
    events = long_request("r", prompt=3, answer=6)[:4]
    last = events[-1]
    assert isinstance(last, VerifyRound)
    (trace,) = feed(assembler(), [*events, replace(last, commit=None, finished=True)])
    assert trace.tokens.shape[0] == 3 + 4
