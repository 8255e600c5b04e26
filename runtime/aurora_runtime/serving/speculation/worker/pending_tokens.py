"""Tokens that the target committed and the draft has not processed, with the target's hidden states, on the device.

A round that does not draft is cheap because the draft does not process the committed tokens either. The draft's KV
cache then lacks them. This buffer keeps what the draft needs to catch up.

Invariant: row ``r`` of the buffer holds, in order, the tokens that follow the draft's KV cache of the request in row
``r`` of SGLang's request table. The caller keeps the counts, because the host knows them anyway.

Letters in shapes: B requests, n nodes of a verify round (a chain), D the width of the target's captured states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from aurora_runtime.serving.speculation.worker.device_copy import to_device


@dataclass(frozen=True)
class CatchUpInput:
    """The pending tokens of some requests, one request after the other: T tokens in all.

    Attributes:
        tokens: [T] the token after each position, which the draft embeds.
        hidden: [T, D] the target's states of each position.
    """

    tokens: Tensor
    hidden: Tensor


@dataclass(frozen=True)
class BufferShape:
    """The sizes of a buffer.

    Attributes:
        rows: rows of the request table.
        widest: tokens of the widest verify round.
        width: D.
        budget_bytes: device memory to use. The buffer takes more only if two rounds would not fit otherwise.
    """

    rows: int
    widest: int
    width: int
    dtype: torch.dtype
    budget_bytes: int

    @property
    def columns(self) -> int:
        token_bytes = self.width * self.dtype.itemsize + torch.int64.itemsize
        return max(self.budget_bytes // (self.rows * token_bytes), 2 * self.widest)


class PendingTokens:
    """One buffer for the whole request table.

    Attributes:
        capacity: pending tokens that a request can have before a round.
    """

    def __init__(self, shape: BufferShape, device: torch.device | str) -> None:
        sizes = (shape.rows, shape.columns)
        self._tokens = torch.zeros(sizes, dtype=torch.int64, device=device)
        self._hidden = torch.zeros((*sizes, shape.width), dtype=shape.dtype, device=device)
        self._drafted = torch.zeros(shape.rows, dtype=torch.int64, device=device)
        self.capacity: Final = shape.columns - shape.widest

    @property
    def bytes(self) -> int:
        """Device memory of the buffer."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (self._tokens, self._hidden))

    def counts_on_device(self, rows: Tensor, lengths: Tensor, caught_up: Tensor) -> Tensor:
        """The pending tokens of each request, where the host does not know them.

        Shapes: rows ``[B]`` of the request table, lengths ``[B]`` committed tokens, caught_up ``[B]`` whether the draft
        has processed all of them.
        """
        drafted = torch.where(caught_up, lengths, self._drafted[rows])
        self._drafted[rows] = drafted
        return lengths - drafted

    def append(self, rows: Sequence[int], counts: Sequence[int] | Tensor, tokens: Tensor, hidden: Tensor) -> None:
        """Write all nodes of a verify round behind the pending tokens of each request.

        The nodes behind the accepted ones are written too. The next round overwrites them, as in the KV cache.

        Args:
            rows: row in the request table of each request [B].
            counts: pending tokens of each request before this round, at most :attr:`capacity` [B]. On the host or on
                the device.
            tokens: [B, n] the target's token after each node.
            hidden: [B, n, D].
        """
        device = hidden.device
        row = to_device(rows, device).unsqueeze(1)
        first = counts if isinstance(counts, Tensor) else to_device(counts, device)
        column = first.unsqueeze(1) + torch.arange(tokens.shape[1], device=device)
        self._tokens[row, column] = tokens.to(self._tokens.dtype)
        self._hidden[row, column] = hidden.to(self._hidden.dtype)

    def read(self, rows: Sequence[int], counts: Sequence[int]) -> CatchUpInput:
        """The first ``counts[i]`` pending tokens of each of the ``rows``."""
        pairs = list(zip(rows, counts, strict=True))
        return CatchUpInput(
            torch.cat([self._tokens[row, :count] for row, count in pairs]),
            torch.cat([self._hidden[row, :count] for row, count in pairs]),
        )
