"""Checks a stored trainer state before it is restored.

Why: a state's record is not signed, and a digest only says that the data are those that the record names. A state that
contradicts itself would end every trainer that restores it, and one with weights that are not finite would let a
trainer skip every batch.

Invariant: a state that passes is restored without an error. Each of its numbers is finite in the type that the trainer
computes with, except for a loss that is not known. Not checked: whether sums of these numbers are finite.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Final

import torch
from torch import Tensor

from aurora_protocol.draft_records import Lineage
from aurora_protocol.errors import InvalidRecord
from aurora_protocol.training_records import TrainerState
from aurora_runtime.training.data.replay_budget import BUDGET
from aurora_runtime.training.model.checkpoint import D2T, T2D
from aurora_runtime.training.optim.ema import EMA_OFFSET, EMA_STEPS
from aurora_runtime.training.optim.session import COUNTERS, GENERATOR, LOSS, VOCABULARY
from aurora_runtime.training.optim.weight_update import MOMENTS
from aurora_runtime.training.state.replay_restore import EVICTED, HELD_OUT, MEASURABLE, SPANS
from aurora_runtime.training.vocabulary_coverage import COUNTS, TOKENS_UNTIL_CHANGE

BYTES_PER_WEIGHT: Final = 16
"""More than a weight, its two moments and its average have together."""
BYTES_PER_TOKEN: Final = 16
"""More than a target's token has: its count, and its place in the vocabulary map."""
MAX_REFERENCE_BYTES: Final = 256 << 20
"""Room for references to shards: as much as the record may have, which names these shards."""
MAX_COUNT: Final = 1 << 48
"""Largest number in a state. Sums of two such numbers still fit the tensors of the next state."""
WEIGHT_TYPES: Final = (torch.float32, torch.bfloat16, torch.float16)
"""Types of weights, moments and averages. Each of their numbers has the same value in float32. Other types, such as
those of 8 bits, lack operations that the check needs."""


def max_state_bytes(lineage: Lineage) -> int:
    """Largest data file of a trainer state of ``lineage``."""
    weights = sum(prod(shape) for shape in _weight_shapes(lineage).values())
    return BYTES_PER_WEIGHT * weights + BYTES_PER_TOKEN * lineage.target.vocab_size + MAX_REFERENCE_BYTES


def _weight_shapes(lineage: Lineage) -> dict[str, tuple[int, ...]]:
    """The shapes of the trained weights of a draft of ``lineage``."""
    return {name: spec.shape for name, spec in lineage.tensors.items() if name not in (D2T, T2D)}


def check_state(record: TrainerState, tensors: Mapping[str, Tensor], lineage: Lineage) -> None:
    """Raise :class:`InvalidRecord` unless a trainer of ``lineage`` can restore the state."""
    shards = len(record.consumed)
    if len({*record.consumed, *record.retired}) != shards + len(record.retired):
        raise InvalidRecord("the record names a shard twice")
    state = _CheckedState(tensors)
    for name, shape in _weight_shapes(lineage).items():
        _check_weight(state, name, shape)
    _check_session(state, lineage)
    _check_references(state, shards)
    _check_counts(state, lineage.target.vocab_size)


def _check_weight(state: _CheckedState, name: str, shape: tuple[int, ...]) -> None:
    state.weights(f"weight.{name}", shape)
    first, second = (f"{moment}.{name}" for moment in MOMENTS)
    if first in state or second in state:
        state.weights(first, shape)
        state.weights(second, shape, lowest=0.0)
    if f"{EMA_OFFSET}.{name}" in state:
        state.weights(f"{EMA_OFFSET}.{name}", shape)


def _check_session(state: _CheckedState, lineage: Lineage) -> None:
    ids = state.integers(VOCABULARY, (lineage.draft_vocab_size,), highest=lineage.target.vocab_size - 1)
    if torch.bincount(ids, minlength=1).max() > 1:
        raise InvalidRecord(f"{VOCABULARY} names a token twice")
    state.integers(COUNTERS, (2,))
    if EMA_STEPS in state:
        state.integers(EMA_STEPS, ())
    if state.typed(LOSS, (), torch.float64).isinf():  # NaN stands for no loss
        raise InvalidRecord(f"{LOSS} is not finite")
    try:
        torch.Generator().set_state(state.tensor_of_any_shape(GENERATOR))
    except (RuntimeError, TypeError) as error:
        raise InvalidRecord(f"{GENERATOR} is no state of a generator") from error


def _check_references(state: _CheckedState, shards: int) -> None:
    spans = state.integers(SPANS, (None, None))
    if spans.shape[1] not in (3, 4):  # a former release kept one more column
        raise InvalidRecord(f"{SPANS} has {spans.shape[1]} columns")
    indices = [spans[:, 0], state.integers(HELD_OUT, (None,))]
    if MEASURABLE in state:  # a request's number may be any
        indices.append(state.typed(MEASURABLE, (None, 2), torch.int64)[:, 1])
    for each in indices:
        if each.numel() and not 0 <= int(each.min()) <= int(each.max()) < shards:
            raise InvalidRecord(f"the data refer to a shard that is not one of the record's {shards}")
    state.integers(EVICTED, ())


def _check_counts(state: _CheckedState, vocab_size: int) -> None:
    state.floats(COUNTS, (vocab_size,), torch.float64, lowest=0.0)
    state.integers(TOKENS_UNTIL_CHANGE, ())
    state.integers(BUDGET, (2,), lowest=-MAX_COUNT)


class _CheckedState:
    """The tensors of a state. Every method raises :class:`InvalidRecord` with the name of a tensor that is wrong."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def tensor_of_any_shape(self, name: str) -> Tensor:
        """The tensor ``name``, of any shape."""
        if name not in self._tensors:
            raise InvalidRecord(f"the data lack {name}")
        return self._tensors[name]

    def tensor(self, name: str, shape: tuple[int | None, ...]) -> Tensor:
        """The tensor ``name``. None in ``shape`` stands for any size."""
        found = self.tensor_of_any_shape(name)
        sizes = tuple(found.shape)
        if len(sizes) != len(shape) or any(b not in (None, a) for a, b in zip(sizes, shape, strict=True)):
            raise InvalidRecord(f"{name} has the shape {list(sizes)}")
        return found

    def typed(self, name: str, shape: tuple[int | None, ...], *types: torch.dtype) -> Tensor:
        """A tensor of one of ``types``."""
        found = self.tensor(name, shape)
        if found.dtype not in types:
            raise InvalidRecord(f"{name} has the number format {found.dtype}")
        return found

    def weights(self, name: str, shape: tuple[int | None, ...], *, lowest: float | None = None) -> Tensor:
        """A tensor of finite numbers in one of :data:`WEIGHT_TYPES`, none below ``lowest``."""
        return self.floats(name, shape, *WEIGHT_TYPES, lowest=lowest)

    def floats(
        self, name: str, shape: tuple[int | None, ...], *types: torch.dtype, lowest: float | None = None
    ) -> Tensor:
        """A tensor of finite numbers in one of ``types``, none below ``lowest``."""
        found = self.typed(name, shape, *types)
        if not bool(found.isfinite().all()):
            raise InvalidRecord(f"{name} has values that are not finite")
        if lowest is not None and bool((found < lowest).any()):
            raise InvalidRecord(f"{name} has values below {lowest:g}")
        return found

    def integers(
        self, name: str, shape: tuple[int | None, ...], *, lowest: int = 0, highest: int = MAX_COUNT
    ) -> Tensor:
        """A tensor of integers between ``lowest`` and ``highest``."""
        found = self.typed(name, shape, torch.int64)
        if bool(((found < lowest) | (found > highest)).any()):
            raise InvalidRecord(f"{name} has impossible values")
        return found
