"""Which rows of a prefill batch does capture keep? Pure.

Training attends to a bounded number of positions before an answer, so a long prompt's earlier states stay in the
engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aurora_runtime.traces import ATTENDED_POSITIONS


@dataclass(frozen=True)
class PrefillRows:
    """One request's rows among the hidden states of a prefill batch. The first belongs to position ``start``."""

    start: int
    rows: slice


def attended_rows(batch: Any) -> dict[int, PrefillRows]:
    """The rows to keep of each request of SGLang's ``batch``, by its index. A request without any is absent.

    The batch computes ``extend_lens[i]`` positions of request ``i`` from ``prefix_lens[i]`` on, one after the other.
    """
    found = {}
    end = 0
    for index, (req, start, length) in enumerate(zip(batch.reqs, batch.prefix_lens, batch.extend_lens, strict=True)):
        begin, end = end, end + length
        unattended = max(len(req.origin_input_ids) - ATTENDED_POSITIONS - start, 0)
        if unattended < length:
            found[index] = PrefillRows(start + unattended, slice(begin + unattended, end))
    return found
