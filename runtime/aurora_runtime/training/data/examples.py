"""From traces to examples: the slots that are trained, and the target distributions that they are trained on.

Invariants: serving can draft from every root, which is the slot of the last prompt token or a later one. Every training
target is a distribution that the target really had at that position. Prompt slots only provide keys and values. Every
accepted token is trained, whoever proposed it, because the target chose it.

Slots and positions are relative to the example's ``start``. The state at slot ``t`` proposes token ``t + 2``, so step
``j`` at root ``t`` is trained on the target's distribution at position ``t + 1 + j``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from aurora_runtime.errors import TraceFormatError
from aurora_runtime.traces import ATTENDED_POSITIONS, RequestTrace
from aurora_runtime.training.data.captured import CapturedDistributions, captured_at
from aurora_runtime.training.data.rejected_nodes import MAX_STEPS, RejectedNodes, rejected_nodes_of

MAX_ROOTS: Final = 512
"""A request with more roots is cut into examples of at most this many."""
MAX_SLOTS: Final = ATTENDED_POSITIONS
"""Slots up to its last root that an example keeps. Earlier slots of the request are dropped."""


@dataclass(frozen=True)
class Example:
    """Up to :data:`MAX_ROOTS` consecutive roots of one request, with the ``T`` slots that they may attend to."""

    start: int  # absolute position of slot 0
    first_root: int
    root_count: int
    fresh: int  # positions that count as seen for the first time with this example
    tokens: Tensor  # [T + 1] int32: tokens at slots 0…T; the state at T itself is not needed
    aux: Tensor  # [T, 3H]: the target's auxiliary hidden states
    targets: CapturedDistributions  # T + 1 rows, by position
    known: Tensor  # [T + 1] bool: whether the position's distribution is known, so that it is trained
    rejected: RejectedNodes

    @property
    def slots(self) -> int:
        return self.aux.shape[0]

    @property
    def nbytes(self) -> int:
        own = sum(t.numel() * t.element_size() for t in (self.tokens, self.aux, self.known))
        return own + self.targets.nbytes + self.rejected.nbytes


def examples_of(trace: RequestTrace, vocab_size: int, counted_positions: int = 0) -> list[Example]:
    """The examples of ``trace``; none when no root has both a state and a target distribution.

    The first ``counted_positions`` positions do not count as fresh. Raises :class:`TraceFormatError` for token ids
    outside the target's vocabulary.
    """
    request = _Request.of(trace, vocab_size)
    return list(request.cut(counted_positions)) if request else []


@dataclass(frozen=True)
class _Request:
    """A whole request in the layout of an example, before it is cut. ``S`` states, ``L`` tokens."""

    start: int  # absolute position of slot 0
    roots: range  # slots
    last_slot: int
    tokens: Tensor  # [L] int32
    aux: Tensor  # [S, 3H]
    targets: CapturedDistributions  # L rows
    known: Tensor  # [L] bool
    rejected: RejectedNodes

    @classmethod
    def of(cls, trace: RequestTrace, vocab_size: int) -> _Request | None:
        tokens = trace.tokens[trace.hidden_start :]
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab_size:
            raise TraceFormatError("token ids outside the target's vocabulary")
        targets, known = _targets_by_position(trace, vocab_size)
        trained = known.nonzero().flatten()
        if not trained.numel():
            return None
        last_slot = min(trace.hidden.shape[0], tokens.numel() - 1) - 1
        first_served = max(trace.prompt_length - 1 - trace.hidden_start, 0)
        first, last = max(first_served, int(trained[0]) - 1), min(last_slot, int(trained[-1]) - 1)
        return cls(
            start=trace.hidden_start,
            roots=range(first, last + 1),
            last_slot=last_slot,
            tokens=tokens,
            aux=trace.hidden,
            targets=targets,
            known=known,
            rejected=rejected_nodes_of(trace, vocab_size),
        )

    def cut(self, counted_positions: int) -> Iterator[Example]:
        """Examples of at most :data:`MAX_ROOTS` roots, which together hold every root once."""
        counted = counted_positions
        for first in self.roots[::MAX_ROOTS]:
            end = min(first + MAX_ROOTS, self.roots.stop)
            seen_positions = self.aux.shape[0] if end == self.roots.stop else end
            fresh = max(seen_positions - counted, 0)
            counted += fresh
            yield self._example(first, end, fresh)

    def _example(self, first: int, end: int, fresh: int) -> Example:
        """The example of the roots ``first`` to ``end - 1``, with memory of its own."""
        begin = max(0, end - MAX_SLOTS)
        # Slots beyond the roots keep the tokens and distributions of later draft steps within reach.
        stop = min(end + MAX_STEPS, self.last_slot + 1)
        rows = slice(begin, stop + 1)
        return Example(
            start=self.start + begin,
            first_root=first - begin,
            root_count=end - first,
            fresh=fresh,
            tokens=self.tokens[rows].clone(),
            aux=self.aux[begin:stop].clone(),
            targets=self.targets[rows].clone(),
            known=self.known[rows].clone(),
            rejected=self.rejected.proposed_within(first, end, begin),
        )


def _accepted_positions(trace: RequestTrace) -> Tensor:
    """Position of each accepted node relative to ``hidden_start`` ``[M]`` int64; meaningless for other nodes."""
    count = trace.node_count.long()
    round_of = torch.repeat_interleave(torch.arange(count.numel()), count)
    # The depth on the accepted path is the number of accepted nodes of the round up to this one, the root being 0.
    accepted_before = torch.cat([torch.zeros(1, dtype=torch.int64), trace.node_accepted.long().cumsum(0)])
    first = count.cumsum(0) - count
    depth = accepted_before[1:] - accepted_before[first][round_of] - 1
    return trace.root.long()[round_of] + depth - trace.hidden_start


def _targets_by_position(trace: RequestTrace, vocab_size: int) -> tuple[CapturedDistributions, Tensor]:
    """The target's distribution at each of the ``L`` positions from ``hidden_start`` on, and where one is known ``[L]``
    bool."""
    length = trace.tokens.shape[0] - trace.hidden_start
    targets = CapturedDistributions.empty(length, trace.top_ids.shape[1])
    known = torch.zeros(length, dtype=torch.bool)
    position = _accepted_positions(trace)
    kept = trace.node_accepted & (position >= 0) & (position < length)
    targets.put(position[kept], captured_at(trace, kept.nonzero().flatten(), vocab_size))
    known[position[kept]] = True
    return targets, known
