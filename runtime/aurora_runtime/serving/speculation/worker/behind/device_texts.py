"""Lookup for rounds that the host launches without the last round's tokens: the device searches its own texts.

The text of a request is copied to the device once, when the request's first round begins. Afterwards each round appends
its committed tokens there, and looks up what the next round may propose.

Invariants:
- The host never waits for the device.
- A request's text on the device is its prompt and its committed tokens, no token twice.
- Proposed tokens are valid ids. After an error nothing more is proposed until the engine starts again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from aurora_runtime.pinned_copy import to_device
from aurora_runtime.serving.speculation.lookup_kernel import propose
from aurora_runtime.serving.speculation.lookup_reference import DeviceProposals
from aurora_runtime.serving.speculation.token_history import TokenHistory

log = logging.getLogger(__name__)

HISTORY_BYTES: Final = 64 << 20
"""Device memory for the texts. Requests that outgrow their share of it get no more proposals."""
ROUNDS_UNKNOWN: Final = 3
"""At most so many rounds have committed tokens that the host's requests do not have yet."""
NO_TOKEN: Final = -1
"""Stands for what is no token of the vocabulary, such as the placeholders of images."""


@dataclass(frozen=True)
class RoundOnDevice:
    """A round of B requests as the device knows it.

    Attributes:
        rows: [B] rows of the request table.
        lengths: [B] committed tokens of each request before the round.
        lookups: what lookup proposes.
    """

    rows: Tensor
    lengths: Tensor
    lookups: DeviceProposals


class DeviceTexts:
    """The texts of all running requests.

    Args:
        rows: rows of the request table.
        max_tokens: tokens of the longest request that the engine takes.
        longest: tokens that lookup proposes.
        on_error: is told of an error, after which nothing is proposed.
    """

    def __init__(
        self,
        rows: int,
        max_tokens: int,
        longest: int,
        vocabulary_size: int,
        device: torch.device | str,
        on_error: Callable[[], None],
    ) -> None:
        row_tokens = min(max_tokens, HISTORY_BYTES // (rows * torch.int32.itemsize) - 1)
        self._history = TokenHistory.allocate(rows, row_tokens, device)
        self._tokens = torch.zeros(rows, longest, dtype=torch.int64, device=device)
        self._match_lengths = torch.zeros(rows, dtype=torch.int32, device=device)
        self._slack = ROUNDS_UNKNOWN * (longest + 1)
        self._vocabulary_size = vocabulary_size
        self._on_error = on_error
        self._failed = False
        self._begun: dict[str, int] = {}  # rows of the requests whose texts are on the device

    def __len__(self) -> int:
        return len(self._begun)

    def forget(self, rid: str) -> None:
        """The request left the engine, or is prefilled."""
        self._begun.pop(rid, None)

    def round_begins(self, reqs: Sequence[Any], rows: Sequence[int], batch: Any) -> RoundOnDevice:
        """What the device knows of the batch, whose requests stand in ``rows``."""
        on_device, lengths = batch.req_pool_indices.long(), batch.seq_lens.clone().long()
        new = [i for i, (req, row) in enumerate(zip(reqs, rows, strict=True)) if self._begun.get(req.rid) != row]
        if new:
            self._guarded(self._begin, [reqs[i] for i in new], [rows[i] for i in new], new, on_device, lengths, batch)
        lookups = DeviceProposals(self._tokens[on_device], self._match_lengths[on_device])
        return RoundOnDevice(on_device, lengths, lookups)

    def committed(self, reqs: Sequence[Any], current: RoundOnDevice, tokens: Tensor, counts: Tensor) -> Tensor:
        """The round committed the first ``counts[b]`` of ``tokens[b]``. Shapes: tokens ``[B, n]``, counts ``[B]``.

        Returns the match lengths ``[B]`` of what lookup proposes in the next round.
        """
        self._guarded(self._append, reqs, current, tokens, counts)
        return self._match_lengths[current.rows]

    def _begin(
        self,
        reqs: Sequence[Any],
        rows: Sequence[int],
        places: list[int],
        on_device: Tensor,
        lengths: Tensor,
        batch: Any,
    ) -> None:
        for req, row in zip(reqs, rows, strict=True):
            text = [*req.origin_input_ids, *req.output_ids]
            valid = [token if 0 <= token < self._vocabulary_size else NO_TOKEN for token in text]
            self._history.begin(row, to_device(valid, on_device.device))
            self._begun[req.rid] = row
        index = to_device(places, on_device.device)
        # The last committed token is only on the device. It is the first that is not in the KV cache.
        self._history.end_with(on_device[index], lengths[index], batch.spec_info.bonus_tokens[index])
        self._search(reqs, on_device[index])

    def _append(self, reqs: Sequence[Any], current: RoundOnDevice, tokens: Tensor, counts: Tensor) -> None:
        self._history.append(current.rows, tokens, counts)
        self._search(reqs, current.rows)

    def _search(self, reqs: Sequence[Any], rows: Tensor) -> None:
        longest = max(len(req.origin_input_ids) + len(req.output_ids) for req in reqs) + self._slack
        found = propose(self._history, rows, self._tokens.shape[1], longest=longest)
        self._tokens[rows] = found.tokens.clamp(min=0)
        self._match_lengths[rows] = found.match_lengths

    def _guarded(self, step: Callable[..., None], *args: Any) -> None:
        if self._failed:
            return
        try:
            step(*args)
        except Exception:  # no proposal costs time; an exception here would end the scheduler
            log.exception("aurora speculation: lookup on the device is off until the engine starts again")
            self._failed = True
            self._match_lengths.zero_()
            self._tokens.zero_()
            self._on_error()
