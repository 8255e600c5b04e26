"""Hidden states between the engine and the writer: in 16 bits, or packed on the GPU.

Packing on the GPU halves the bytes that travel to the host and wait there. Invariant: the shard's bytes are the same,
because packing what was unpacked gives the same bytes (:mod:`aurora_runtime.packed_states`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from aurora_protocol.pod_settings import StateType
from aurora_runtime.kernels.kernel_switch import Kernel, runs_fused
from aurora_runtime.packed_states import unpack


def packs_on_device(state_type: StateType, device: torch.device) -> bool:
    """Whether states are packed before they leave ``device``: where shards store them so, and the kernel is on."""
    return state_type is StateType.FLOAT8 and runs_fused(Kernel.PATH_STATES_FLOAT8, device)


@dataclass(frozen=True)
class TracedStates:
    """Hidden states of some positions. With a ``scale``, ``values`` are packed."""

    values: Tensor  # [..., H3]
    scale: Tensor | None = None  # [...]

    @classmethod
    def of(cls, hidden: Tensor, *, packed: bool) -> TracedStates:
        """``hidden`` ``[..., H3]`` in 16 bits, or packed by the kernel into new memory."""
        if not packed:
            return cls(to_trace_dtype(hidden))
        from aurora_runtime.kernels.path_states_float8 import pack_fused  # needs Triton

        codes, scale = pack_fused(hidden.reshape(-1, hidden.shape[-1]))
        return cls(codes.view(hidden.shape), scale.view(hidden.shape[:-1]))

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + (0 if self.scale is None else self.scale.nbytes)

    def copied(self, copy_tensor: Callable[[Tensor], Tensor]) -> TracedStates:
        return TracedStates(copy_tensor(self.values), None if self.scale is None else copy_tensor(self.scale))

    def rows(self, *index: int | slice) -> Tensor:
        """The states of the positions at ``index``, in 16 bits ``[n, H3]``."""
        values = self.values[index]
        return to_trace_dtype(values) if self.scale is None else unpack(values, self.scale[index])


def to_trace_dtype(hidden: Tensor) -> Tensor:
    """Hidden states in 16 bits; float32 becomes bfloat16, because float16 lacks its range."""
    return hidden.to(torch.bfloat16) if hidden.dtype == torch.float32 else hidden


def keep_hidden(hidden: Tensor, *, alone: bool = False, packed: bool = False) -> TracedStates:
    """Hidden states for later use: a copy on a GPU, where the next batch overwrites them, and themselves on a CPU.

    Args:
        alone: copy on a CPU too, because the states of the other requests of the batch must not be kept.
        packed: the copy is packed.
    """
    if packed:
        return TracedStates.of(hidden, packed=True)
    return TracedStates(hidden if hidden.device.type == "cpu" and not alone else to_trace_dtype(hidden.clone()))
