"""A request that refuses traces leaves nothing in capture, and a tag leaves the engine as a hash only."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from aurora_protocol.tag_hash import tag_key, tag_number
from aurora_runtime.serving.capture.hooks import CaptureHooks, PromptOutput, VerifyOutput
from aurora_runtime.serving.capture.request_filter import RequestFilter, RequestSample
from aurora_runtime.serving.capture.settings import CaptureSettings
from aurora_runtime.serving.capture.verify_tensors import ReducedVerify, VerifyTensors
from aurora_runtime.traces import decode
from tests.assets.trace_budget import TRACE_ALL
from tests.unit.serving.capture.test_hooks import NODES, WIDTH, batch_of, capture_probe, commit, make, request, verify

REFUSING: Any = {"aurora": {"trace": False}}
SECRET = "secret"  # noqa: S105 - a test's key


def prefill(hooks: CaptureHooks, reqs: list[Any], marks: list[float]) -> Any:
    """Prefill two tokens of each request, with its mark as hidden states. Returns what capture keeps."""
    hidden = torch.tensor(marks).repeat_interleave(2).unsqueeze(1).repeat(1, WIDTH)
    logits = SimpleNamespace(hidden_states=hidden, auxiliary_device_output=None)
    batch = batch_of(*reqs, prefix_lens=[0] * len(reqs), extend_lens=[2] * len(reqs))
    hooks.around_prefill(lambda *_: SimpleNamespace(logits_output=logits), None, batch)
    output = logits.auxiliary_device_output
    if output is not None:
        output.copy_to_host(lambda tensor: tensor).consume(batch, [commit(0, 9)] * len(reqs))
    return output


def decode_round(hooks: CaptureHooks, reqs: list[Any]) -> Any:
    """One verify round that ends each request with one token. Returns what capture keeps."""
    result, verify_input, logits = verify(len(reqs))
    verify_input.draft_token[::NODES] = 9
    _, lengths, accepted = result
    lengths[:] = 1
    accepted[:, 1:] = -1
    batch = batch_of(*reqs)
    hooks.after_sample(result, verify_input, batch, logits)
    output = logits.auxiliary_device_output
    if output is not None:
        output.copy_to_host(lambda tensor: tensor).consume(batch, [commit(1, 5)] * len(reqs))
    return output


@pytest.mark.parametrize("replayed", [False, True])
def test_a_refusing_request_leaves_nothing_beside_a_traced_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, replayed: bool
) -> None:
    """Neither its tokens nor its hidden states are in the queue: what is kept has no more memory than its own rows."""
    monkeypatch.setattr(VerifyTensors, "outlives_the_batch", not replayed)
    hooks, recorder = make(monkeypatch, tmp_path)
    capture_probe(hooks)
    traced = request("traced", prompt=(1, 2), finished=False)
    refusing = request("refusing", prompt=(77, 78), custom_params=REFUSING)
    prompt = prefill(hooks, [refusing, traced], [-1.0, 1.0])
    assert isinstance(prompt, PromptOutput)
    kept = prompt.states
    assert [part.untyped_storage().nbytes() for part in kept] == [part.nbytes for part in kept]
    assert all(bool((part > 0).all()) for part in kept)
    verified = decode_round(hooks, [refusing, traced])
    assert isinstance(verified, VerifyOutput)
    assert isinstance(verified.tensors, ReducedVerify)
    assert {tensor.shape[0] for tensor in vars(verified.tensors).values()} == {1}
    assert [event.rid for events in recorder.batches[1:] for event in events] == ["traced", "traced"]
    assert recorder.errors == 0


@pytest.mark.parametrize("wish", [{"trace": False}, {"trace": False, "tag": "a"}, {"trace": "no"}, "unreadable"])
def test_a_refusing_request_alone_is_not_even_looked_at(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wish: Any
) -> None:
    hooks, recorder = make(monkeypatch, tmp_path)
    capture_probe(hooks)
    refusing = [request("refusing", custom_params={"aurora": wish})]
    assert prefill(hooks, refusing, [1.0]) is None
    assert decode_round(hooks, refusing) is None
    assert (len(recorder.batches), recorder.errors) == (1, 0)


def test_a_refusing_request_with_the_id_of_an_ended_one_is_not_traced() -> None:
    request_filter, ended = RequestFilter(RequestSample(lambda: 1)), [request("a")]
    assert request_filter.traced(ended) == ()
    request_filter.probe_captured = True
    assert [traced.rid for traced in request_filter.traced(ended)] == ["a"]
    assert request_filter.traced(list(ended)) is request_filter.traced(ended), "the rounds of one batch share it"
    assert not request_filter.some_refuse(ended)
    refusing = [request("a", custom_params=REFUSING)]
    assert request_filter.traced(refusing) == ()
    assert request_filter.some_refuse(refusing)


def test_the_spool_holds_the_hash_of_a_tag_and_nothing_of_a_refusing_request(tmp_path: Path) -> None:
    """With the real writer: what reaches the disk."""
    settings = CaptureSettings(
        state_folder=str(tmp_path),
        lineage=1,
        pod="p",
        boot="b",
        top_tokens=3,
        tag_key=tag_key(SECRET).hex(),
        tokens_per_minute=TRACE_ALL,
    )
    hooks = CaptureHooks(
        settings, append_output=lambda _, output: output, read_rank=lambda: 0, read_version=lambda: "7"
    )
    capture_probe(hooks)
    reqs = [
        request("plain", prompt=(1, 2)),
        request("refusing", prompt=(77, 78), custom_params=REFUSING),
        request("tagged", prompt=(3, 4), custom_params={"aurora": {"tag": "tenant-7"}}),
        request("of a tenant", prompt=(5, 6), custom_params={"aurora": {"tenant": "tenant-7"}}),
    ]
    prefill(hooks, reqs, [1.0, 2.0, 3.0, 4.0])
    for req in reqs:
        req.finished = lambda: True
    decode_round(hooks, reqs)
    hooks._sink.writer.stop()
    (shard,) = (tmp_path / "spool").glob("*.safetensors")
    traces = list(decode(shard.read_bytes()))
    number = tag_number(tag_key(SECRET), "tenant-7")
    assert [(trace.tokens.tolist()[:2], trace.tag) for trace in traces] == [
        ([1, 2], 0),
        ([3, 4], number),
        ([5, 6], number),
    ]
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"tenant-7" not in path.read_bytes()
