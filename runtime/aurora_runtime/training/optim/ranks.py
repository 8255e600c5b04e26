"""One session on several processes of one machine: rank 0 leads, the others compute their share of its steps.

Invariants: rank 0 alone knows the store, the memory, the clock and the mean of the weights, which is served, so that
nothing it does depends on how many help it; all ranks hold the same weights and moments, bit for bit, because all apply
the same summed gradients; a step on given examples is the same on any number of ranks up to rounding, because its
losses are averaged over the positions of all.

A rank that dies ends the others: what they exchange fails, and torchrun stops those that wait for nothing.
"""

from __future__ import annotations

import dataclasses
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

from aurora_runtime.training.data.batch import Batch
from aurora_runtime.training.data.examples import Example
from aurora_runtime.training.model.draft import DraftModel
from aurora_runtime.training.model.vocabulary_map import VocabularyMap
from aurora_runtime.training.optim.batch_loss import batch_loss
from aurora_runtime.training.optim.recipe import Recipe
from aurora_runtime.training.optim.session import Session

log = logging.getLogger(__name__)
LEADER: Final = 0
PATIENCE: Final = timedelta(days=365)
"""A rank waits this long for the leader's next word: while there are no traces there is nothing to say."""


class Order(StrEnum):
    """What the leader tells the others."""

    START = "start"  # with the draft's sizes and the recipe; the vocabulary map follows
    RESTORE = "restore"  # a stored state follows
    STEP = "step"  # with the rank's share
    ROUND = "round"  # the moments, because the leader saves
    STOP = "stop"


def processes() -> int:
    """How many processes torchrun started, this one included; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


class Ranks:
    """This process among those that torchrun started. Orders and shares travel over the loopback interface, gradients
    as the device does it best."""

    def __init__(self, device: torch.device) -> None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # orders are pickled: no other machine may send any
        dist.init_process_group("gloo", timeout=PATIENCE)
        self.size, self.leads = dist.get_world_size(), dist.get_rank() == LEADER
        gradients = dist.new_group(backend="nccl" if device.type == "cuda" else "gloo")
        assert isinstance(gradients, dist.ProcessGroup)  # every rank is in it
        self.gradients = gradients

    def tell(self, order: Order, what: Any = None) -> None:
        """The leader's ``order``, the same to all."""
        self._scatter([(order, what)] * self.size)

    def share(self, shares: Sequence[Sequence[Example]]) -> Sequence[Example]:
        """Order a step on ``shares``, one per rank; returns the leader's own."""
        _, own = self._scatter([(Order.STEP, share) for share in shares])
        share: Sequence[Example] = own
        return share

    def hear(self) -> tuple[Order, Any]:
        """The leader's next order."""
        return self._scatter(None)

    def _scatter(self, orders: list[tuple[Order, Any]] | None) -> tuple[Order, Any]:
        heard: list[Any] = [None]
        dist.scatter_object_list(heard, orders, src=LEADER)
        order: tuple[Order, Any] = heard[0]
        return order

    def spread(self, tensors: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The leader's ``tensors``, on the CPU of every rank."""
        shapes = [{n: (t.shape, t.dtype) for n, t in tensors.items()} if tensors is not None else None]
        dist.broadcast_object_list(shapes, src=LEADER)
        out = {}
        for name, (shape, dtype) in (shapes[0] or {}).items():
            tensor = tensors[name].cpu().contiguous() if tensors is not None else torch.empty(shape, dtype=dtype)
            dist.broadcast(tensor.view(-1).view(torch.uint8), src=LEADER)
            out[name] = tensor
        return out

    def total(self, own: Tensor) -> Tensor:
        """The sum of all ranks' ``own``."""
        summed = own.detach().clone()
        dist.all_reduce(summed, group=self.gradients)
        return summed

    def dismiss(self) -> None:
        """The leader's last word."""
        self.tell(Order.STOP)
        dist.destroy_process_group()


class _Objective(nn.Module):
    """The loss as a module, as DDP wants it: its backward then sums gradients while it is still at work."""

    def __init__(self, draft: DraftModel, recipe: Recipe, ranks: Ranks) -> None:
        super().__init__()
        self.draft, self._recipe, self._ranks = draft, recipe, ranks

    def forward(self, batch: Batch) -> Tensor:
        return batch_loss(self.draft, batch, self._recipe, self._ranks.total)


class SharedSession(Session):
    """A session whose steps all ranks compute. The leader drives it like any other; the others :func:`follow`."""

    def __init__(
        self, draft: DraftModel, vocabulary: VocabularyMap, recipe: Recipe, device: torch.device, ranks: Ranks
    ) -> None:
        super().__init__(draft, vocabulary, recipe, device, offers=ranks.leads)
        self._ranks = ranks
        if ranks.leads:
            ranks.tell(Order.START, (draft.config, draft.embedding.dtype, recipe))
            ranks.spread(vars(vocabulary))
        # This copies the leader's weights, and the target's embedding, to all.
        self._model = DistributedDataParallel(
            _Objective(self.draft, recipe, ranks),
            process_group=ranks.gradients,
            forward_sync_buffers=False,
            gradient_as_bucket_view=True,
        )

    def _backward(self, examples: Sequence[Example]) -> Tensor:
        if self._ranks.leads:
            examples = self._ranks.share(deal(examples, self._ranks.size))
        loss: Tensor = self._model(self.batch(examples))
        (self._ranks.size * loss).backward()  # type: ignore[no-untyped-call]  # DDP averages; the step's is the sum
        return self._ranks.total(loss)

    def round_moments(self) -> None:
        if self._ranks.leads:
            try:
                self._ranks.tell(Order.ROUND)
            except RuntimeError:
                log.warning("another rank has ended: what was learnt is saved, and the next step ends this one too")
        super().round_moments()

    def restore(self, tensors: dict[str, Tensor]) -> None:
        if self._ranks.leads:
            self._ranks.tell(Order.RESTORE)
            self._ranks.spread(tensors)
        super().restore(tensors)


def follow(ranks: Ranks, device: torch.device) -> SharedSession | None:
    """Do what the leader says until it says stop; returns the session, if there was one."""
    session: SharedSession | None = None
    while True:
        order, what = ranks.hear()
        if order is Order.STOP:
            dist.destroy_process_group()
            return session
        if session is None:
            config, dtype, recipe = what
            draft = DraftModel(config, torch.empty(config.vocab_size, config.hidden_size, dtype=dtype))
            session = SharedSession(draft, VocabularyMap(**ranks.spread()), recipe, device, ranks)
        elif order is Order.STEP:
            session.step(what)
        elif order is Order.RESTORE:
            session.restore(ranks.spread())
        elif order is Order.ROUND:
            session.round_moments()


def deal(examples: Sequence[Example], ranks: int) -> list[list[Example]]:
    """Shares of about equal slots: the largest example first, to who has least. Who gets none gets one that teaches
    nothing, because every rank takes part in every sum."""
    shares: list[list[Example]] = [[] for _ in range(ranks)]
    for example in sorted(examples, key=lambda e: e.slots, reverse=True):
        min(shares, key=lambda share: sum(e.slots for e in share)).append(example)
    return [share or [_silent(min(examples, key=lambda e: e.slots))] for share in shares]


def _silent(example: Example) -> Example:
    return dataclasses.replace(
        example, weight=torch.zeros_like(example.weight), branches=example.branches.within(0, 0, 0)
    )
