"""States that a GPU packs end in a shard as those that the writer packs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from aurora_protocol.pod_settings import StateType
from aurora_runtime.kernels import path_states_float8
from aurora_runtime.packed_states import pack
from aurora_runtime.serving.capture import hooks as hooks_module
from aurora_runtime.serving.capture.traced_states import packs_on_device
from aurora_runtime.serving.capture.verify_tensors import VerifyTensors
from tests.unit.serving.capture.test_hooks import batch_of, capture_probe, commit, make, request, verify


def test_states_are_packed_only_for_shards_that_hold_them_so() -> None:
    for device in (torch.device("cuda"), torch.device("cpu")):
        assert not packs_on_device(StateType.FLOAT8, device), "no GPU has timed the kernel"
        assert not packs_on_device(StateType.BFLOAT16, device)


def test_packed_states_take_half_the_memory_and_keep_the_bytes_of_a_shard(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(VerifyTensors, "outlives_the_batch", False)
    monkeypatch.setattr(path_states_float8, "pack_fused", pack)  # the kernel writes the same bytes
    batch = batch_of(request("a"), request("b"), request("c", finished=True))
    result, verify_input, logits = verify(3)
    logits.hidden_states = torch.randn(logits.hidden_states.shape[0], 64).to(torch.bfloat16)
    sizes, shards = [], []
    for packed in (False, True):
        monkeypatch.setattr(hooks_module, "packs_on_device", lambda *_, packed=packed: packed)
        hooks, recorder = make(monkeypatch, tmp_path)
        capture_probe(hooks)
        hooks.after_sample(result, verify_input, batch, logits)
        output = logits.auxiliary_device_output
        sizes.append(output.tensors.states.nbytes)
        output.copy_to_host(lambda tensor: tensor).consume(batch, [commit(1, 9), commit(2, 9), commit(4, 5, 6, 7)])
        assert recorder.errors == 0
        shards.append([pack(event.hidden) for event in recorder.batches[-1]])
    assert sizes[1] < 0.6 * sizes[0]
    for (codes, scale), (own_codes, own_scale) in zip(*shards, strict=True):
        assert torch.equal(codes.view(torch.uint8), own_codes.view(torch.uint8))
        assert torch.equal(scale, own_scale)
