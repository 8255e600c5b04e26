"""Tokens that the target committed and the draft has not processed, with the target's hidden states, on the device.

A round that does not draft is cheap because the draft does not process the committed tokens either. The draft's KV
cache then lacks them. This buffer keeps what the draft needs to catch up.

Invariant: row ``r`` of the buffer holds, in order, the first ``count`` tokens that follow the draft's KV cache of the
request in row ``r`` of SGLang's request table. The caller keeps the counts, because the host knows them anyway.

Letters in shapes: B requests, n nodes of a verify round (a chain), D the width of the target's captured states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CatchUpInput:
    """The pending tokens of some requests, one request after the other: T tokens in all.

    Attributes:
        tokens: [T] the token after each position, which the draft embeds.
        hidden: [T, D] the target's states of each position.
    """

    tokens: Tensor
    hidden: Tensor


class PendingTokens:
    """One buffer for the whole request table.

    Attributes:
        capacity: pending tokens that a request can have.
    """

    def __init__(self, rows: int, widest: int, budget_bytes: int) -> None:
        """``rows`` of the request table, the ``widest`` verify round in tokens, and the bytes of the buffer."""
        self._rows = rows
        self._widest = widest
        self._budget_bytes = budget_bytes
        self._tokens: Tensor | None = None
        self._hidden: Tensor | None = None
        self.capacity = 0

    @property
    def bytes(self) -> int:
        """Device memory in use."""
        return sum(t.numel() * t.element_size() for t in (self._tokens, self._hidden) if t is not None)

    def append(self, rows: Sequence[int], counts: Sequence[int], tokens: Tensor, hidden: Tensor) -> None:
        """Write all nodes of a verify round behind the pending tokens of each request.

        The nodes behind the accepted ones are written too. The next round overwrites them, as in the KV cache.

        Args:
            rows: row in the request table of each request [B].
            counts: pending tokens of each request before this round, at most :attr:`capacity` [B].
            tokens: [B, n] the target's token after each node.
            hidden: [B, n, D].
        """
        if self._tokens is None or self._hidden is None:
            self._allocate(hidden)
        assert self._tokens is not None
        assert self._hidden is not None
        device = hidden.device
        row = torch.tensor(rows, device=device).unsqueeze(1)
        column = torch.tensor(counts, device=device).unsqueeze(1) + torch.arange(tokens.shape[1], device=device)
        self._tokens[row, column] = tokens.to(self._tokens.dtype)
        self._hidden[row, column] = hidden

    def read(self, rows: Sequence[int], counts: Sequence[int]) -> CatchUpInput:
        """The first ``counts[i]`` pending tokens of each of the ``rows``."""
        assert self._tokens is not None
        assert self._hidden is not None
        pairs = list(zip(rows, counts, strict=True))
        return CatchUpInput(
            torch.cat([self._tokens[row, :count] for row, count in pairs]),
            torch.cat([self._hidden[row, :count] for row, count in pairs]),
        )

    def _allocate(self, hidden: Tensor) -> None:
        token_bytes = hidden.shape[-1] * hidden.element_size() + torch.int64.itemsize
        columns = max(self._budget_bytes // (self._rows * token_bytes), 2 * self._widest)
        self.capacity = columns - self._widest
        shape = (self._rows, columns)
        self._tokens = torch.zeros(shape, dtype=torch.int64, device=hidden.device)
        self._hidden = torch.zeros((*shape, hidden.shape[-1]), dtype=hidden.dtype, device=hidden.device)
