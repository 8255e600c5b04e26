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
from aurora_runtime.training.data.kept_states import HeldBytes, KeptStates
from aurora_runtime.training.data.rejected_nodes import MAX_STEPS, RejectedNodes, rejected_nodes_of

MAX_ROOTS: Final = 512
"""A request with more roots is cut into examples of at most this many."""
MAX_SLOTS: Final = ATTENDED_POSITIONS
"""Slots up to its last root that an example keeps. Earlier slots of the request are dropped."""


@dataclass(frozen=True)
class Example:
    """Up to :data:`MAX_ROOTS` consecutive roots of one request, with the ``T`` slots that they may attend to."""

    first_root: int
    root_count: int
    fresh: int  # positions that count as seen for the first time with this example
    tokens: Tensor  # [T + 1] int32: tokens at slots 0…T; the state at T itself is not needed
    aux: KeptStates  # T rows: the target's auxiliary hidden states, shared with examples of the same tokens
    targets: CapturedDistributions  # T + 1 rows, by position
    known: Tensor  # [T + 1] bool: whether the position's distribution is known, so that it is trained
    rejected: RejectedNodes

    @property
    def start(self) -> int:
        """The absolute position of slot 0."""
        return self.aux.start

    @property
    def slots(self) -> int:
        return len(self.aux)

    @property
    def nbytes(self) -> int:
        """The memory that the example keeps. Several examples may share a part of it (:class:`HeldBytes`)."""
        return HeldBytes(self).total


def examples_of(trace: RequestTrace, vocab_size: int, states: KeptStates | None = None) -> list[Example]:
    """The examples of ``trace``; none when no root has both a state and a target distribution.

    ``states`` stand for the trace's own, and may begin earlier. Positions before the trace's own do not count as fresh,
    because they already did in the trace that they come from. Raises :class:`TraceFormatError` for token ids
    outside the target's vocabulary.
    """
    states = KeptStates.of(trace) if states is None else states
    request = _Request.of(trace, vocab_size, states)
    return list(request.cut(trace.hidden_start - states.start)) if request else []


@dataclass(frozen=True)
class _Request:
    """A whole request in the layout of an example, before it is cut. ``S`` states, ``L`` tokens."""

    roots: range  # slots
    last_slot: int
    tokens: Tensor  # [L] int32
    aux: KeptStates  # S rows
    targets: CapturedDistributions  # L rows
    known: Tensor  # [L] bool
    rejected: RejectedNodes

    @classmethod
    def of(cls, trace: RequestTrace, vocab_size: int, states: KeptStates) -> _Request | None:
        start = states.start
        tokens = trace.tokens[start:]
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab_size:
            raise TraceFormatError("token ids outside the target's vocabulary")
        targets, known = _targets_by_position(trace, vocab_size, start)
        trained = known.nonzero().flatten()
        if not trained.numel():
            return None
        last_slot = min(len(states), tokens.numel() - 1) - 1
        first_served = max(trace.prompt_length - 1 - start, 0)
        first, last = max(first_served, int(trained[0]) - 1), min(last_slot, int(trained[-1]) - 1)
        return cls(
            roots=range(first, last + 1),
            last_slot=last_slot,
            tokens=tokens,
            aux=states,
            targets=targets,
            known=known,
            rejected=rejected_nodes_of(trace, vocab_size, start),
        )

    def cut(self, counted_positions: int) -> Iterator[Example]:
        """Examples of at most :data:`MAX_ROOTS` roots, which together hold every root once."""
        counted = counted_positions
        for first in self.roots[::MAX_ROOTS]:
            end = min(first + MAX_ROOTS, self.roots.stop)
            seen_positions = len(self.aux) if end == self.roots.stop else end
            fresh = max(seen_positions - counted, 0)
            counted += fresh
            yield self._example(first, end, fresh)

    def _example(self, first: int, end: int, fresh: int) -> Example:
        """The example of the roots ``first`` to ``end - 1``. Its memory is its own, but for the states."""
        begin = max(0, end - MAX_SLOTS)
        # Slots beyond the roots keep the tokens and distributions of later draft steps within reach.
        stop = min(end + MAX_STEPS, self.last_slot + 1)
        rows = slice(begin, stop + 1)
        return Example(
            first_root=first - begin,
            root_count=end - first,
            fresh=fresh,
            tokens=self.tokens[rows].clone(),
            aux=self.aux[begin:stop],
            targets=self.targets[rows].clone(),
            known=self.known[rows].clone(),
            rejected=self.rejected.proposed_within(first, end, begin),
        )


def _accepted_positions(trace: RequestTrace) -> Tensor:
    """Absolute position of each accepted node ``[M]`` int64; meaningless for other nodes."""
    count = trace.node_count.long()
    round_of = torch.repeat_interleave(torch.arange(count.numel()), count)
    # The depth on the accepted path is the number of accepted nodes of the round up to this one, the root being 0.
    accepted_before = torch.cat([torch.zeros(1, dtype=torch.int64), trace.node_accepted.long().cumsum(0)])
    first = count.cumsum(0) - count
    depth = accepted_before[1:] - accepted_before[first][round_of] - 1
    return trace.root.long()[round_of] + depth


def _targets_by_position(trace: RequestTrace, vocab_size: int, start: int) -> tuple[CapturedDistributions, Tensor]:
    """The target's distribution at each of the ``L`` positions from ``start`` on, and where one is known ``[L]``
    bool."""
    length = trace.tokens.shape[0] - start
    targets = CapturedDistributions.empty(length, trace.top_ids.shape[1])
    known = torch.zeros(length, dtype=torch.bool)
    position = _accepted_positions(trace) - start
    kept = trace.node_accepted & (position >= 0) & (position < length)
    targets.put(position[kept], captured_at(trace, kept.nonzero().flatten(), vocab_size))
    known[position[kept]] = True
    return targets, known
