"""The hooks on stand-ins for SGLang's batches clone traced requests, skip others, and never raise."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from aurora_runtime.serving.capture.hooks import CaptureHooks
from aurora_runtime.serving.capture.request_filter import TraceAllowance
from aurora_runtime.serving.capture.settings import PROBE_PREFIX, CaptureSettings
from aurora_runtime.serving.capture.shard_writer import Batch
from aurora_runtime.serving.capture.trace_assembler import PromptChunk, VerifyRound
from aurora_runtime.serving.capture.verify_tensors import VerifyTensors, top_tokens
from aurora_runtime.traces import ProposalSource
from tests.assets.trace_budget import TRACE_ALL

NODES, VOCAB, WIDTH, DEPTH = 4, 20, 6, 3


class Recorder:
    """Stands in for the writer and keeps the offered batches."""

    def __init__(self, budget: int) -> None:
        self.allowance = TraceAllowance(budget)
        self.batches: list[list[PromptChunk | VerifyRound]] = []
        self.errors = 0
        self.started = False

    def start(self) -> None:
        self.started = True

    def offer(self, batch: Batch) -> None:
        events = batch.split()
        assert len(events) == batch.records
        assert batch.nbytes > 0
        self.batches.append(events)

    def count_long_prompt(self) -> None:
        raise AssertionError("no test has a prompt that is too long for a trace")

    def count_hook_error(self) -> None:
        self.errors += 1


def request(rid: str, *, finished: bool = False, prompt: tuple[int, ...] = (1, 2, 3), custom_params: Any = None) -> Any:
    return SimpleNamespace(
        rid=rid,
        multimodal_inputs=None,
        input_embeds=None,
        beam_group=None,
        origin_input_ids=list(prompt),
        finished=lambda: finished,
        sampling_params=SimpleNamespace(custom_params=custom_params),
    )


def batch_of(*reqs: Any, idle: bool = False, **fields: Any) -> Any:
    return SimpleNamespace(reqs=list(reqs), forward_mode=SimpleNamespace(is_idle=lambda: idle), **fields)


def make(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, rank: int = 0, budget: int = TRACE_ALL
) -> tuple[CaptureHooks, Recorder]:
    settings = CaptureSettings(
        state_folder=str(tmp_path), lineage=1, pod="p", boot="b", tokens_per_minute=budget, top_tokens=3
    )
    recorder = Recorder(budget)
    monkeypatch.setattr("aurora_runtime.serving.capture.hooks.ShardWriter", lambda _settings: recorder)
    hooks = CaptureHooks(
        settings, append_output=lambda _current, output: output, read_rank=lambda: rank, read_version=lambda: "7"
    )
    return hooks, recorder


class Proposer(StrEnum):
    """Stands in for the sources of the speculation controller."""

    NONE = "none"
    LOOKUP = "lookup"
    DRAFT = "draft"


def verify(size: int, *, nodes: int = NODES, depth: int = DEPTH, **on_input: Any) -> tuple[Any, Any, Any]:
    """Result, verify input and logits of a batch whose request i accepts i tokens (at most depth - 1) of a chain."""
    accept = torch.full((size, depth), -1, dtype=torch.int32)
    lengths = torch.tensor([min(i, depth - 1) + 1 for i in range(size)], dtype=torch.int32)
    for i, length in enumerate(lengths.tolist()):
        accept[i, :length] = i * nodes + torch.arange(length, dtype=torch.int32)
    rows = size * nodes
    verify_input = SimpleNamespace(
        draft_token=torch.arange(rows),
        draft_token_num=nodes,
        retrieve_next_token=torch.tensor([[*range(1, nodes), -1]] * size),
        retrieve_next_sibling=torch.full((size, nodes), -1),
        **on_input,
    )
    logits = SimpleNamespace(
        next_token_logits=torch.randn(rows, VOCAB),
        hidden_states=torch.arange(rows, dtype=torch.float32).unsqueeze(1).repeat(1, WIDTH),
        auxiliary_device_output=None,
    )
    return (torch.zeros(rows, dtype=torch.int32), lengths, accept), verify_input, logits


def commit(index: int, *tokens: int) -> Any:
    return SimpleNamespace(output_index=index, token_ids=tokens)


def capture_probe(hooks: CaptureHooks) -> None:
    """Capture the launcher's probe."""
    batch = batch_of(request(PROBE_PREFIX + "x"))
    result, verify_input, logits = verify(1)
    hooks.after_sample(result, verify_input, batch, logits)
    logits.auxiliary_device_output.copy_to_host(lambda tensor: tensor).consume(batch, [commit(1, 5)])


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[CaptureHooks, Recorder]:
    """Hooks that capture every request, because the launcher's probe was captured."""
    hooks, recorder = make(monkeypatch, tmp_path)
    capture_probe(hooks)
    return hooks, recorder


def test_before_the_probe_only_the_probe_is_captured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hooks, recorder = make(monkeypatch, tmp_path, budget=0)
    result, verify_input, logits = verify(1)
    hooks.after_sample(result, verify_input, batch_of(request("warm-up")), logits)
    assert logits.auxiliary_device_output is None
    capture_probe(hooks)
    assert [event.rid for event in recorder.batches[0]] == [PROBE_PREFIX + "x"]


@pytest.mark.parametrize("replayed", [False, True])
def test_a_verify_batch_becomes_one_round_per_request(
    monkeypatch: pytest.MonkeyPatch, traced: tuple[CaptureHooks, Recorder], *, replayed: bool
) -> None:
    """`replayed` stands for a GPU, where the next batch overwrites logits and hidden states."""
    monkeypatch.setattr(VerifyTensors, "outlives_the_batch", not replayed)
    hooks, recorder = traced
    batch = batch_of(request("a"), request("HEALTH_CHECK_1"), request("c", finished=True))
    result, verify_input, logits = verify(3)
    expected = torch.log_softmax(logits.next_token_logits, -1).topk(3)
    hooks.after_sample(result, verify_input, batch, logits)
    device = logits.auxiliary_device_output
    for tensor in (verify_input.draft_token, verify_input.retrieve_next_token, verify_input.retrieve_next_sibling):
        tensor.zero_()  # whoever proposed may reuse its memory
    for tensor in (result[1], result[2], logits.next_token_logits, logits.hidden_states) if replayed else ():
        tensor.zero_()
    device.copy_to_host(lambda tensor: tensor).consume(batch, [commit(1, 9), commit(2, 9), commit(4, 5, 6, 7)])
    first, last = recorder.batches[-1]
    assert isinstance(first, VerifyRound)
    assert isinstance(last, VerifyRound)
    assert (first.rid, last.rid, last.finished, last.version) == ("a", "c", True, 7)
    assert first.source is ProposalSource.DRAFT, "no controller chose another"
    assert last.draft_tokens.tolist() == [8, 9, 10, 11]
    assert last.path.tolist() == [0, 1, 2]
    assert first.path.tolist() == [0]
    assert last.hidden[:, 0].tolist() == [8, 9, 10], "the states of the accepted path"
    assert last.hidden.dtype is torch.bfloat16
    assert last.next_token.tolist() == [1, 2, 3, -1]
    assert np.array_equal(last.top_ids, expected.indices[8:12].numpy())
    assert torch.allclose(torch.from_numpy(last.top_logprobs).float(), expected.values[8:12], atol=1e-2)
    assert last.commit is not None
    assert (last.commit.output_index, last.commit.token_ids) == (4, (5, 6, 7))
    assert recorder.errors == 0


def captured_rounds(hooks: CaptureHooks, recorder: Recorder, verified: tuple[Any, Any, Any]) -> list[VerifyRound]:
    """The rounds that capture makes of a verified batch."""
    result, verify_input, logits = verified
    batch = batch_of(*(request(f"r{i}") for i in range(len(result[1]))))
    hooks.after_sample(result, verify_input, batch, logits)
    commits = [commit(1, *range(int(length))) for length in result[1]]
    logits.auxiliary_device_output.copy_to_host(lambda tensor: tensor).consume(batch, commits)
    return [event for event in recorder.batches[-1] if isinstance(event, VerifyRound)]


def test_a_round_names_the_source_that_the_controller_chose(traced: tuple[CaptureHooks, Recorder]) -> None:
    hooks, recorder = traced
    chosen = (Proposer.DRAFT, Proposer.NONE, Proposer.LOOKUP)
    rounds = captured_rounds(hooks, recorder, verify(3, aurora_sources=chosen))
    assert [event.source for event in rounds] == [ProposalSource.DRAFT, ProposalSource.NONE, ProposalSource.LOOKUP]


@pytest.mark.parametrize("on_input", [{}, {"aurora_sources": (Proposer.NONE, Proposer.NONE)}])
def test_a_round_of_width_1_has_one_node_and_no_proposals(
    traced: tuple[CaptureHooks, Recorder], on_input: dict[str, Any]
) -> None:
    hooks, recorder = traced
    rounds = captured_rounds(hooks, recorder, verify(2, nodes=1, depth=1, **on_input))
    assert [(event.source, event.draft_tokens.tolist(), event.path.tolist()) for event in rounds] == [
        (ProposalSource.NONE, [0], [0]),
        (ProposalSource.NONE, [1], [0]),
    ]
    assert [event.hidden.shape for event in rounds] == [(1, WIDTH)] * 2
    assert recorder.errors == 0


def test_sources_of_another_batch_lose_the_batch(traced: tuple[CaptureHooks, Recorder]) -> None:
    hooks, recorder = traced
    result, verify_input, logits = verify(2, aurora_sources=(Proposer.DRAFT,))
    hooks.after_sample(result, verify_input, batch_of(request("a"), request("b")), logits)
    assert logits.auxiliary_device_output is None
    assert recorder.errors == 1


def test_states_too_far_before_the_answer_stay_in_the_engine(
    monkeypatch: pytest.MonkeyPatch, traced: tuple[CaptureHooks, Recorder]
) -> None:
    """Three chunks of a long prompt: the first is left out whole, the second in part."""
    monkeypatch.setattr("aurora_runtime.serving.capture.hooks.marker_of", lambda worker: (len(worker),))
    monkeypatch.setattr("aurora_runtime.serving.capture.hooks.ATTENDED_POSITIONS", 6)
    hooks, recorder = traced
    long = request("long")
    long.origin_input_ids = list(range(16))
    kept: list[tuple[int, list[float]] | None] = []

    def original(worker: object, given: Any, *, on_publish: object) -> Any:
        given.extend_lens = None  # the engine is free to change the batch
        return SimpleNamespace(logits_output=logits, worker=worker, on_publish=on_publish)

    for start, length in ((0, 8), (8, 4), (12, 4)):
        logits = SimpleNamespace(
            hidden_states=torch.arange(start, start + length).float().unsqueeze(1), auxiliary_device_output=None
        )
        batch = batch_of(long, prefix_lens=[start], extend_lens=[length])
        result = hooks.around_prefill(original, "worker", batch, on_publish="called")
        assert (result.worker, result.on_publish) == ("worker", "called")
        if logits.auxiliary_device_output is None:
            kept.append(None)
            continue
        logits.auxiliary_device_output.copy_to_host(lambda tensor: tensor).consume(batch, [None])
        (chunk,) = recorder.batches[-1]
        assert isinstance(chunk, PromptChunk)
        assert (chunk.prompt, chunk.marker, chunk.commit) == (list(range(16)), (len("worker"),), None)
        kept.append((chunk.start, chunk.hidden[:, 0].tolist()))
    assert kept == [None, (10, [10, 11]), (12, [12, 13, 14, 15])]
    assert recorder.errors == 0


@pytest.mark.parametrize("broken", ["result", "verify_input", "logits"])
def test_a_hook_that_fails_loses_one_batch_and_nothing_else(traced: tuple[CaptureHooks, Recorder], broken: str) -> None:
    hooks, recorder = traced
    result, verify_input, logits = verify(1)
    arguments = {"result": result, "verify_input": verify_input, "logits": logits} | {broken: object()}
    hooks.after_sample(arguments["result"], arguments["verify_input"], batch_of(request("a")), arguments["logits"])
    assert recorder.errors == 1
    done = hooks.around_prefill(lambda *_: "done", None, batch_of(request("a")))
    assert (done, recorder.errors) == ("done", 3)


def test_a_batch_that_changed_before_its_commit_is_not_captured(traced: tuple[CaptureHooks, Recorder]) -> None:
    hooks, recorder = traced
    result, verify_input, logits = verify(1)
    hooks.after_sample(result, verify_input, batch_of(request("a")), logits)
    logits.auxiliary_device_output.copy_to_host(lambda t: t).consume(batch_of(request("b")), [commit(1, 5)])
    assert (len(recorder.batches), recorder.errors) == (1, 1)


def test_other_ranks_and_idle_batches_do_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hooks, recorder = make(monkeypatch, tmp_path, rank=1)
    result, verify_input, logits = verify(1)
    hooks.after_sample(result, verify_input, batch_of(request(PROBE_PREFIX)), logits)
    assert (logits.auxiliary_device_output, recorder.started) == (None, False)
    hooks, recorder = make(monkeypatch, tmp_path)
    hooks.after_sample(result, verify_input, batch_of(idle=True), logits)
    assert (logits.auxiliary_device_output, recorder.started) == (None, False)


def test_requests_without_token_ids_are_left_out(traced: tuple[CaptureHooks, Recorder]) -> None:
    hooks, _ = traced
    picture = request("picture")
    picture.multimodal_inputs = object()
    result, verify_input, logits = verify(1)
    hooks.after_sample(result, verify_input, batch_of(picture), logits)
    assert logits.auxiliary_device_output is None


def test_masked_logits_stay_finite_and_the_probabilities_add_up_to_one() -> None:
    logits = torch.full((2, VOCAB), float("-inf"))
    logits[0, 3] = 1.0
    logits[1] = torch.randn(VOCAB)
    ids, logprobs, uncaptured_mass = top_tokens(logits, 5)
    assert ids[0, 0] == 3
    assert bool(torch.isfinite(logprobs).all())
    assert torch.allclose(logprobs.float().exp().sum(-1) + uncaptured_mass.float(), torch.ones(2), atol=2e-3)


@pytest.mark.parametrize("vocabulary", [7, 64, 1000, 4096])
def test_the_top_tokens_equal_those_of_a_sort_of_the_whole_vocabulary(vocabulary: int) -> None:
    logits = torch.randn(6, vocabulary, generator=torch.Generator().manual_seed(vocabulary)) * 5
    logits[1, vocabulary // 2 :] = float("-inf")
    logits[2, 2:] = float("-inf")
    ids, logprobs, _ = top_tokens(logits, 32)
    k = min(32, vocabulary)
    expected = logits.log_softmax(-1).topk(k, dim=-1)
    assert torch.allclose(logprobs.float(), expected.values.clamp(min=-1e4), rtol=1e-3, atol=1e-3)
    finite = torch.isfinite(expected.values)
    assert torch.equal(ids[finite].long(), expected.indices[finite])
    assert int(ids.min()) >= 0
    assert int(ids.max()) < vocabulary
