"""A session whose steps all ranks compute: the leader trains, and the other ranks compute their share of each step.

Invariants: only rank 0 knows the store, the replay buffer, the clock and the served average of the weights. The other
ranks only compute gradients, so the choice of examples, saving and offering do not depend on their number. All ranks
hold the same weights and moments, bit for bit, because all apply the same summed gradients. A step on given examples is
the same on any number of ranks up to rounding, because its losses are averaged over the positions of all ranks.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

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
from aurora_runtime.training.optim.ranks import Order, Ranks
from aurora_runtime.training.optim.recipe import Recipe
from aurora_runtime.training.optim.session import Session

log = logging.getLogger(__name__)


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

    A rank without examples gets one without a loss, because every rank takes part in every sum.
    """
    shares: list[list[Example]] = [[] for _ in range(ranks)]
    for example in sorted(examples, key=lambda e: e.slots, reverse=True):
        min(shares, key=lambda share: sum(e.slots for e in share)).append(example)
    return [share or [_without_loss(min(examples, key=lambda e: e.slots))] for share in shares]


def _without_loss(example: Example) -> Example:
    """``example`` without known distributions and without rejected nodes."""
    return dataclasses.replace(
        example, known=torch.zeros_like(example.known), rejected=example.rejected.proposed_within(0, 0, 0)
    )
