"""The texts of running requests on the device, where lookup under overlap scheduling searches them.

Invariant: the host never waits for the device. All shapes follow from host values.

Letters in shapes: ``B`` requests of the batch, ``R`` rows of the history, ``L`` tokens that a row can hold.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from aurora_runtime.serving.speculation.lookup_reference import POSITION_BITS


@dataclass(frozen=True)
class TokenHistory:
    """One row for each row of SGLang's request table.

    ``tokens`` is int32 ``[R, L + 1]``. Its last column takes writes that belong nowhere. ``lengths`` is int32 ``[R]``.
    A request that outgrows its row has a length above ``L``, and nothing is proposed for it.
    """

    tokens: Tensor
    lengths: Tensor

    @classmethod
    def allocate(cls, rows: int, max_tokens: int, device: torch.device | str) -> TokenHistory:
        """An empty history. Raises ValueError for rows that are longer than a search can address."""
        if rows < 1 or not 0 < max_tokens < 1 << POSITION_BITS:
            raise ValueError(f"{rows} rows of {max_tokens} tokens cannot be looked up on a device")
        return cls(
            torch.zeros(rows, max_tokens + 1, dtype=torch.int32, device=device),
            torch.zeros(rows, dtype=torch.int32, device=device),
        )

    @property
    def max_tokens(self) -> int:
        return self.tokens.shape[1] - 1

    def begin(self, row: int, text: Tensor) -> None:
        """Write ``text``, ``[T]``, into ``row``, and forget what was there. :meth:`end_with` says how much counts."""
        kept = text[: self.max_tokens]
        self.tokens[row, : kept.shape[0]] = kept

    def end_with(self, rows: Tensor, positions: Tensor, tokens: Tensor) -> None:
        """Let the text in ``rows[b]`` end with ``tokens[b]`` at ``positions[b]``. Shapes: all ``[B]``."""
        self.tokens[rows, positions.clamp(max=self.max_tokens)] = tokens.to(self.tokens.dtype)
        self.lengths[rows] = (positions + 1).to(self.lengths.dtype)

    def append(self, rows: Tensor, tokens: Tensor, counts: Tensor) -> None:
        """Append the first ``counts[b]`` of ``tokens[b]`` to the text in ``rows[b]``.

        Shapes: rows ``[B]`` (distinct), tokens ``[B, W]``, counts ``[B]``.
        """
        offsets = torch.arange(tokens.shape[1], device=tokens.device)
        positions = self.lengths[rows][:, None] + offsets
        belongs = (offsets < counts[:, None]) & (positions < self.max_tokens)
        columns = torch.where(belongs, positions, self.max_tokens).long()
        self.tokens[rows[:, None], columns] = tokens.to(self.tokens.dtype)
        self.lengths[rows] += counts.to(self.lengths.dtype)
