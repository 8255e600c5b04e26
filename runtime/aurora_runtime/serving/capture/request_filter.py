"""Decides which requests of a batch are traced.

Invariants: warm-ups, health checks and measurements are never traced, nor is a request that asks not to be. Until the
launcher's probe is captured, only the probe is traced, because no client sends requests before that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final

from aurora_protocol.agent_api import MEASUREMENT_PREFIX
from aurora_runtime.held_out_split import keyed_draw
from aurora_runtime.request_privacy import NO_TAG, tag_number, wish_of
from aurora_runtime.serving.capture.settings import PROBE_PREFIX

HEALTH_CHECK_PREFIX: Final = "HEALTH_CHECK"
REMEMBERED_REQUESTS: Final = 4096
"""Requests whose draw is remembered, so that a round does not hash the ids of its requests again."""


@dataclass(frozen=True)
class TracedRequest:
    """One traced request of a batch: its index in ``batch.reqs``, its id, and the number of its tag."""

    index: int
    rid: str
    tag: int = NO_TAG


def is_sampled(rid: str, ratio: Decimal, key: bytes = b"") -> bool:
    """Whether a request is in the sample: a pure function of its id and the key, so that all ranks and batches agree.

    A client may choose the id. Without the key it cannot choose an id that is traced, or one that is not.
    """
    return Decimal(keyed_draw(key, rid.encode())) < ratio * (1 << 64)


class RequestFilter:
    """Selects the requests to trace.

    ``ratio`` is the share of the requests that are sampled, ``key`` decides which. ``tag_key`` hashes their tags.
    """

    def __init__(self, ratio: Decimal, key: bytes = b"", tag_key: bytes = b"") -> None:
        self._tag_key = tag_key
        self._draws = lru_cache(REMEMBERED_REQUESTS)(lambda rid: is_sampled(rid, ratio, key))
        self.probe_captured = False

    def traced(self, reqs: Sequence[Any]) -> tuple[TracedRequest, ...]:
        """The traced requests among ``reqs``, SGLang's requests of one batch."""
        return tuple(
            TracedRequest(index, req.rid, tag_number(self._tag_key, wish_of(req).tag))
            for index, req in enumerate(reqs)
            if self._is_traced(req)
        )

    def some_refuse(self, reqs: Sequence[Any]) -> bool:
        """Whether a request of ``reqs`` asks not to be traced. Then no tensor of the whole batch may be kept."""
        return any(not wish_of(req).trace for req in reqs)

    def _is_traced(self, req: Any) -> bool:
        rid = req.rid
        if not isinstance(rid, str) or rid.startswith((HEALTH_CHECK_PREFIX, MEASUREMENT_PREFIX)):
            return False
        if rid.startswith(PROBE_PREFIX):
            return True
        if not self.probe_captured or req.multimodal_inputs is not None or req.input_embeds is not None:
            return False  # a position without a token id cannot be trained on
        return req.beam_group is None and self._draws(rid) and wish_of(req).trace
