"""One session on several processes of one machine: rank 0 leads, the others compute their share of its steps.

Invariants: only rank 0 knows the store, the replay buffer, the clock and the served average of the weights. The other
ranks only compute gradients, so the choice of examples, saving and offering do not depend on their number. All ranks
hold the same weights and moments, bit for bit, because all apply the same summed gradients. A step on given examples is
the same on any number of ranks up to rounding, because its losses are averaged over the positions of all ranks.

Nothing is pickled between ranks. Orders are JSON, tensors travel as their bytes, and examples lie in memory that all
ranks map (:mod:`aurora_runtime.training.optim.shared_examples`).

A rank that dies ends the others: collective calls fail, and torchrun stops the ranks that are in no collective call.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from enum import StrEnum
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from aurora_runtime.engine.draft_config import config_from_json, config_json
from aurora_runtime.training.data.batch import Batch
from aurora_runtime.training.data.examples import Example
from aurora_runtime.training.model.draft import DraftModel
from aurora_runtime.training.model.vocabulary_map import VocabularyMap
from aurora_runtime.training.optim.batch_loss import batch_loss
from aurora_runtime.training.optim.recipe import Recipe
from aurora_runtime.training.optim.session import Session
from aurora_runtime.training.optim.shared_examples import ExampleReader, ExampleWriter, StepTable

log = logging.getLogger(__name__)
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


class _Objective(nn.Module):
    """The loss as a module, as DDP requires: DDP then sums gradients while the backward pass still runs."""

    def __init__(self, draft: DraftModel, recipe: Recipe, ranks: Ranks) -> None:
        super().__init__()
        self.draft, self._recipe, self._ranks = draft, recipe, ranks

    def forward(self, batch: Batch) -> Tensor:
        return batch_loss(self.draft, batch, self._recipe, self._ranks.all_reduce_sum)


class SharedSession(Session):
    """A session whose steps all ranks compute. The leader drives it; the other ranks call :func:`run_follower`."""

    def __init__(
        self, draft: DraftModel, vocabulary: VocabularyMap, recipe: Recipe, device: torch.device, ranks: Ranks
    ) -> None:
        super().__init__(draft, vocabulary, recipe, device, averages=ranks.leads)
        self._ranks = ranks
        if ranks.leads:
            dtype = str(draft.embedding.dtype).removeprefix("torch.")
            ranks.broadcast(Order.START, [config_json(draft.config), dtype, recipe.to_json()])
            ranks.broadcast_tensors(vars(vocabulary))
        # This copies the leader's weights, and the target's embedding, to all ranks.
        self._model = DistributedDataParallel(
            _Objective(self.draft, recipe, ranks),
            process_group=ranks.gradients,
            forward_sync_buffers=False,
            gradient_as_bucket_view=True,
        )

    def _backward(self, examples: Sequence[Example]) -> Tensor:
        if self._ranks.leads:
            examples = self._ranks.share_step(deal_among_ranks(examples, self._ranks.size))
        loss: Tensor = self._model(self.batch(examples))
        (self._ranks.size * loss).backward()  # type: ignore[no-untyped-call]  # DDP averages; the step's is the sum
        return self._ranks.all_reduce_sum(loss)

    def round_moments(self) -> None:
        if self._ranks.leads:
            try:
                self._ranks.broadcast(Order.ROUND_MOMENTS)
            except RuntimeError:
                log.warning("another rank has ended: this rank saves its state and ends at the next step")
        super().round_moments()

    def restore(self, tensors: dict[str, Tensor]) -> None:
        if self._ranks.leads:
            self._ranks.broadcast(Order.RESTORE)
            self._ranks.broadcast_tensors(tensors)
        super().restore(tensors)


def run_follower(ranks: Ranks, device: torch.device) -> SharedSession | None:
    """Carry out the leader's orders until :attr:`Order.STOP`; returns the session, if one was started."""
    session: SharedSession | None = None
    while True:
        order, payload = ranks.receive()
        if order is Order.STOP:
            dist.destroy_process_group()
            return session
        if session is None:
            config, recipe = config_from_json(payload[0]), Recipe.from_json(payload[2])
            embedding = torch.empty(config.vocab_size, config.hidden_size, dtype=getattr(torch, payload[1]))
            vocabulary = VocabularyMap(**ranks.broadcast_tensors())
            session = SharedSession(DraftModel(config, embedding), vocabulary, recipe, device, ranks)
        elif order is Order.STEP:
            session.step(ranks.shared_examples(payload))
        elif order is Order.RESTORE:
            session.restore(ranks.broadcast_tensors())
        elif order is Order.ROUND_MOMENTS:
            session.round_moments()


def deal_among_ranks(examples: Sequence[Example], ranks: int) -> list[list[Example]]:
    """Shares of about equal slots: each example, the largest first, goes to the rank with the fewest slots.

    A rank without examples gets one of weight zero, because every rank takes part in every sum.
    """
    shares: list[list[Example]] = [[] for _ in range(ranks)]
    for example in sorted(examples, key=lambda e: e.slots, reverse=True):
        min(shares, key=lambda share: sum(e.slots for e in share)).append(example)
    return [share or [_without_loss(min(examples, key=lambda e: e.slots))] for share in shares]


def _without_loss(example: Example) -> Example:
    """``example`` with weight zero and without rejected nodes."""
    return dataclasses.replace(
        example, weight=torch.zeros_like(example.weight), rejected=example.rejected.proposed_within(0, 0, 0)
    )
