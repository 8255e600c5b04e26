"""Tokens that the target committed and the draft has not processed, with the target's hidden states, on the device.

A round that does not draft is cheap because the draft does not process the committed tokens either. The draft's KV
cache then lacks them. This buffer keeps what the draft needs to catch up.

The buffer is a pool of pages that all requests share, so that short requests leave room for long ones. The host hands
out the pages, because it knows how many tokens may be pending at most. The device knows the pages of each request.

Invariants: the pages of row ``r`` hold, in order, the tokens that follow the draft's KV cache of the request in row
``r`` of SGLang's request table. The caller keeps the counts, because the host knows them anyway. A page belongs to one
row at a time. Pages depend on the calls alone, so all tensor-parallel ranks hand out the same.

Letters in shapes: B requests, n nodes of a verify round (a chain), D the width of the target's captured states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from aurora_runtime.engine.speculation_settings import PENDING_TOKENS
from aurora_runtime.pinned_copy import to_device

PAGE_TOKENS: Final = 32
MOST_HOST_SLOTS: Final = 256
"""Slots of a round that the host computes. For more the device is faster, by about ten operations."""
MOST_DEFAULT_BYTES: Final = 2 << 30
"""Device memory that no setting asks for, unless every row needs more for two rounds (:attr:`BufferShape.least_bytes`).
SGLang leaves a few GB beside its own caches."""


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
        budget_bytes: device memory to use. None: enough for all rows, and at most :data:`MOST_DEFAULT_BYTES`, or
            :attr:`least_bytes` where that is more.
        request_tokens: tokens that one request may hold.
        page_tokens: tokens of a page.
    """

    rows: int
    widest: int
    width: int
    dtype: torch.dtype
    budget_bytes: int | None = None
    request_tokens: int = PENDING_TOKENS
    page_tokens: int = PAGE_TOKENS

    @property
    def token_bytes(self) -> int:
        return self.width * self.dtype.itemsize + torch.int64.itemsize

    @property
    def row_pages(self) -> int:
        """Pages that one row may hold: at least two rounds fit."""
        return self.pages_for(max(self.request_tokens, 2 * self.widest))

    @property
    def request_slots(self) -> int:
        """Pending tokens that a request may have, if there are pages."""
        return self.row_pages * self.page_tokens

    @property
    def least_bytes(self) -> int:
        """Memory in which each row has room for two rounds. With less, requests would often lose the draft."""
        return self.rows * self.pages_for(2 * self.widest) * self.page_tokens * self.token_bytes

    @property
    def pages(self) -> int:
        budget = max(MOST_DEFAULT_BYTES, self.least_bytes) if self.budget_bytes is None else self.budget_bytes
        return min(self.rows * self.row_pages, budget // (self.page_tokens * self.token_bytes))

    @property
    def bytes(self) -> int:
        """Device memory of the buffer."""
        return self.pages * self.page_tokens * self.token_bytes

    @property
    def obstacle(self) -> str | None:
        """Why the budget is useless; None when it is not."""
        if self.budget_bytes is None or self.budget_bytes >= self.least_bytes:
            return None
        return (
            f"pending_bytes is {self.budget_bytes}, and {self.rows} requests with {self.token_bytes} bytes a token need"
            f" at least {self.least_bytes}, to use the draft again after two rounds without it"
        )

    def pages_for(self, tokens: int) -> int:
        return -(-tokens // self.page_tokens)


class PendingTokens:
    """One buffer for the whole request table.

    Attributes:
        tokens_for_each_request: pending tokens that all requests may have at once before a round of any width.
    """

    def __init__(self, shape: BufferShape, device: torch.device | str) -> None:
        slots = shape.pages * shape.page_tokens
        self._tokens = torch.zeros(slots, dtype=torch.int64, device=device)
        self._hidden = torch.zeros((slots, shape.width), dtype=shape.dtype, device=device)
        self._table = torch.zeros((shape.rows, shape.row_pages), dtype=torch.int64, device=device)
        self._free = list(range(shape.pages))
        self._pages: dict[int, list[int]] = {}
        self._shape = shape
        pages_of_each = min(shape.pages // shape.rows, shape.row_pages)
        self.tokens_for_each_request: Final = pages_of_each * shape.page_tokens - shape.widest

    @property
    def slots(self) -> int:
        """Tokens that the whole buffer holds."""
        return self._tokens.shape[0]

    @property
    def bytes(self) -> int:
        """Device memory of the buffer."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (self._tokens, self._hidden))

    def reserve(self, rows: Sequence[int], tokens: Sequence[int]) -> list[bool]:
        """Make room for ``tokens[i]`` tokens in ``rows[i]``, those that the row has already included.

        Returns whether each row has that room now. A row without loses its pages to the rows behind it.
        """
        granted, new = [], list[tuple[int, int, int]]()
        page_tokens = self._shape.page_tokens
        for row, count in zip(rows, tokens, strict=True):
            pages = self._pages.setdefault(row, [])
            if count <= len(pages) * page_tokens:
                granted.append(True)
                continue
            needed = self._shape.pages_for(count) - len(pages)
            granted.append(len(pages) + needed <= self._shape.row_pages and needed <= len(self._free))
            if not granted[-1]:
                self.release(row)
                continue
            for _ in range(needed):
                new.append((row, len(pages), self._free[-1]))
                pages.append(self._free.pop())
        if new:
            row_index, place, page = to_device(list(zip(*new, strict=True)), self._table.device)
            self._table[row_index, place] = page
        return granted

    def release(self, row: int) -> None:
        """The pending tokens of ``row`` are not needed any more."""
        self._free += reversed(self._pages.pop(row, []))

    def append(self, rows: Sequence[int], counts: Sequence[int], tokens: Tensor, hidden: Tensor) -> None:
        """Write all nodes of a verify round behind the pending tokens of each request.

        The nodes behind the accepted ones are written too. The next round overwrites them, as in the KV cache.

        Args:
            rows: row in the request table of each request [B], with room for the nodes (:meth:`reserve`).
            counts: pending tokens of each request before this round [B].
            tokens: [B, n] the target's token after each node.
            hidden: [B, n, D].
        """
        device = hidden.device
        nodes = range(tokens.shape[1])
        if len(rows) * len(nodes) > MOST_HOST_SLOTS:
            columns = to_device(counts, device).unsqueeze(1) + torch.arange(len(nodes), device=device)
            slots = self._slots_of(to_device(rows, device).unsqueeze(1), columns).flatten()
        else:
            places = [(row, count + node) for row, count in zip(rows, counts, strict=True) for node in nodes]
            slots = self._slots_at(places)
        self._tokens.index_copy_(0, slots, tokens.flatten().to(self._tokens.dtype))
        self._hidden.index_copy_(0, slots, hidden.flatten(0, 1).to(self._hidden.dtype))

    def read(self, rows: Sequence[int], counts: Sequence[int]) -> CatchUpInput:
        """The first ``counts[i]`` pending tokens of each of the ``rows``."""
        places = [(row, column) for row, count in zip(rows, counts, strict=True) for column in range(count)]
        slots = self._slots_at(places)
        return CatchUpInput(self._tokens[slots], self._hidden[slots])

    def _slots_at(self, places: Sequence[tuple[int, int]]) -> Tensor:
        """Where the tokens in these rows and columns lie in the pool, by the host's own list of pages."""
        size = self._shape.page_tokens
        slots = [self._pages[row][column // size] * size + column % size for row, column in places]
        return to_device(slots, self._tokens.device)

    def _slots_of(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Where the tokens in ``columns`` of ``rows`` lie in the pool, by the table on the device."""
        size = self._shape.page_tokens
        return self._table[rows, columns // size] * size + columns % size
