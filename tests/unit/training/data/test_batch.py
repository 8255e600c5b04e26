"""How a batch reaches its device. torch cannot pin memory without CUDA, so a stand-in replaces the calls to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from aurora_runtime.packed_states import unpacked
from aurora_runtime.training.data.batch import Batch, collate
from aurora_runtime.training.data.examples import examples_of
from aurora_runtime.training.model.vocabulary_map import VocabularyMap
from tests.unit.training import tiny
from tests.unit.training.trees import tree_trace

STEPS = 3
CUDA = torch.device("cuda")


class StandInForCuda(TorchFunctionMode):
    """Stands in for a GPU: its pinned memory and its device memory are copies on the CPU.

    Records of each copy to the device whether the source was pinned, and whether the caller asked not to wait.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pinned = list[Tensor]()
        self.copies = list[tuple[bool, bool]]()  # pinned, non_blocking
        self.on_device = list[Tensor]()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is Tensor.pin_memory:
            self.pinned.append(args[0].clone())
            return self.pinned[-1]
        if function is Tensor.to and args[1:] == (CUDA,):
            pinned = any(args[0] is tensor for tensor in self.pinned)
            self.copies.append((pinned, kwargs.get("non_blocking", False)))
            self.on_device.append(args[0].clone())
            return self.on_device[-1]
        return function(*args, **kwargs)


def tensors_of(part: Any) -> Iterator[Tensor]:
    """All tensors of a batch, whichever fields it has."""
    if isinstance(part, Tensor):
        yield part
    elif isinstance(part, tuple):
        for each in part:
            yield from tensors_of(each)
    elif dataclasses.is_dataclass(part):
        for field in dataclasses.fields(part):
            yield from tensors_of(getattr(part, field.name))


def small_batch() -> Batch:
    """A batch of two requests with rejected nodes."""
    examples = [e for seed in range(2) for e in examples_of(tree_trace(seed), tiny.VOCAB)]
    vocabulary = VocabularyMap.of(torch.arange(tiny.DRAFT_VOCAB), tiny.VOCAB)
    return collate(examples, STEPS, vocabulary, with_rejected=True)


def test_every_tensor_of_a_batch_goes_to_a_gpu_from_pinned_memory_and_without_waiting() -> None:
    batch = small_batch()
    with StandInForCuda() as gpu:
        moved = batch.to(CUDA)
    expected, tensors = list(tensors_of(batch)), list(tensors_of(moved))
    assert gpu.copies == [(True, True)] * len(expected)
    assert {id(tensor) for tensor in tensors} == {id(tensor) for tensor in gpu.on_device}
    assert all(torch.equal(one, other) for one, other in zip(tensors, expected, strict=True))
    assert (moved.root_count, moved.positions) == (batch.root_count, batch.positions)


def test_states_of_different_types_keep_their_values_in_one_batch() -> None:
    """A target in fp16 has finer states than one in bf16, which has larger ones."""
    fine = tiny.trace(0)
    fine = dataclasses.replace(fine, hidden=fine.hidden.to(torch.float16) + 2.0**-9)
    large = dataclasses.replace(tiny.trace(1), hidden=torch.full_like(tiny.trace(1).hidden, 1e5))
    vocabulary = VocabularyMap.of(torch.arange(tiny.DRAFT_VOCAB), tiny.VOCAB)
    for traces in ([fine, large], [large, fine], [fine, fine], [large, large]):
        examples = [e for trace in traces for e in examples_of(trace, tiny.VOCAB)]
        trunk = collate(examples, STEPS, vocabulary).trunk
        aux = unpacked(trunk.aux, trunk.aux_scale)
        for row, example in zip(aux, examples, strict=True):
            assert torch.equal(row[: example.slots].double(), tiny.whole(example.aux).double())
        if traces[0] is traces[1]:
            assert aux.dtype == traces[0].hidden.dtype


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_other_devices_take_no_pinned_memory(device: str) -> None:
    with StandInForCuda() as gpu:
        moved = small_batch().to(torch.device(device))
    assert not gpu.pinned
    assert {tensor.device.type for tensor in tensors_of(moved)} == {device}
    assert not gpu.copies
