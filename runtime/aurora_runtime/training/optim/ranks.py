"""The processes that torchrun started on one machine, and what they send each other: rank 0 leads, the others follow.

Nothing is pickled between ranks. Orders are JSON, tensors travel as their bytes, and examples lie in memory that all
ranks map (:mod:`aurora_runtime.training.optim.shared_examples`).

A rank that dies ends the others: collective calls fail, and torchrun stops the ranks that are in no collective call.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from enum import StrEnum
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor

from aurora_runtime.training.data.examples import Example
from aurora_runtime.training.optim.shared_examples import ExampleReader, ExampleWriter, StepTable

LEADER: Final = 0
ORDER_TIMEOUT: Final = timedelta(days=365)
"""How long a rank waits for the leader's next order: while there are no traces, the leader sends none."""


class Order(StrEnum):
    """The leader's orders to the other ranks."""

    START = "start"  # with the draft's sizes and the recipe; the vocabulary map follows
    RESTORE = "restore"  # a stored state follows
    STEP = "step"  # with the table of the examples of all ranks
    ROUND_MOMENTS = "round-moments"  # as the leader rounds its own when it saves
    STOP = "stop"


def world_size() -> int:
    """The number of processes that torchrun started, this one included; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


class Ranks:
    """This process among those that torchrun started.

    Orders travel over the loopback interface, gradients over the device's own backend.
    """

    def __init__(self, device: torch.device) -> None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # orders carry no proof of who sent them
        dist.init_process_group("gloo", timeout=ORDER_TIMEOUT)
        self.size, self._rank = dist.get_world_size(), dist.get_rank()
        self.leads = self._rank == LEADER
        self._writer = ExampleWriter() if self.leads else None
        self._reader = ExampleReader()
        gradients = dist.new_group(backend="nccl" if device.type == "cuda" else "gloo")
        assert isinstance(gradients, dist.ProcessGroup)  # every rank is in it
        self.gradients = gradients

    def broadcast(self, order: Order, payload: Any = None) -> None:
        """As the leader: send ``order`` with a ``payload`` of JSON's types to all ranks."""
        self._broadcast_json([order.value, payload])

    def share_step(self, shares: Sequence[Sequence[Example]]) -> Sequence[Example]:
        """As the leader: order a step on ``shares``, one per rank; returns the leader's own."""
        assert self._writer is not None
        self.broadcast(Order.STEP, dataclasses.asdict(self._writer.write(shares)))
        return shares[LEADER]

    def receive(self) -> tuple[Order, Any]:
        """Wait for the leader's next order; returns the order and its payload."""
        order, payload = self._broadcast_json(None)
        return Order(order), payload

    def shared_examples(self, payload: Any) -> list[Example]:
        """This rank's examples of a step, valid until the next one."""
        return self._reader.read(StepTable(**payload), self._rank)

    def _broadcast_json(self, value: Any) -> Any:
        """Send the leader's ``value`` to all ranks; returns it. Other ranks' is ignored."""
        sent = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        size = torch.tensor([sent.numel()])
        dist.broadcast(size, src=LEADER)
        data = sent if self.leads else torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(data, src=LEADER)
        return value if self.leads else json.loads(data.numpy().tobytes())

    def broadcast_tensors(self, tensors: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Send the leader's ``tensors`` to all ranks; returns them on the CPU. Other ranks pass None."""
        sent = {name: tensor.cpu().contiguous() for name, tensor in (tensors or {}).items()}
        specs = self._broadcast_json({n: [str(t.dtype).removeprefix("torch."), *t.shape] for n, t in sent.items()})
        received = {}
        for name, (dtype, *shape) in specs.items():
            received[name] = sent[name] if self.leads else torch.empty(shape, dtype=getattr(torch, dtype))
            dist.broadcast(received[name].view(-1).view(torch.uint8), src=LEADER)
        return received

    def all_reduce_sum(self, own: Tensor) -> Tensor:
        """The sum of ``own`` over all ranks."""
        summed = own.detach().clone()
        dist.all_reduce(summed, group=self.gradients)
        return summed

    def stop_followers(self) -> None:
        """As the leader: end the other ranks and leave the process group."""
        self.broadcast(Order.STOP)
        dist.destroy_process_group()
