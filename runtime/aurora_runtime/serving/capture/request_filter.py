"""Decides which requests of a batch are traced.

Invariants: warm-ups and health checks are never traced, nor is a request that asks not to be, as those of a
measurement do. Until the
launcher's probe is captured, only the probe is traced, because no client sends requests before that.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from aurora_protocol.tag_hash import NO_TAG, tag_number
from aurora_runtime.request_wish import wish_of
from aurora_runtime.serving.capture.request_sample import RequestSample
from aurora_runtime.serving.capture.settings import PROBE_PREFIX

HEALTH_CHECK_PREFIX: Final = "HEALTH_CHECK"


@dataclass(frozen=True)
class TracedRequest:
    """One traced request of a batch: its index in ``batch.reqs``, its id, and the number of its tag."""

    index: int
    rid: str
    tag: int = NO_TAG


@dataclass(frozen=True)
class _Filtered:
    """The traced requests of the last batch, none of which refused traces."""

    reqs: tuple[Any, ...]
    probe_captured: bool
    traced: tuple[TracedRequest, ...]


class RequestFilter:
    """Selects the requests to trace.

    ``share`` of the requests are sampled, ``key`` decides which. ``tag_key`` hashes their tags.
    ``marker`` is what the chat template puts before each answer, once it is known. A trace has less than ``max_tokens``
    of the prompt, so a request with a longer one is not traced, and ``refused_prompt`` is called once for it.
    """

    def __init__(
        self,
        share: Callable[[], float],
        key: bytes = b"",
        tag_key: bytes = b"",
        *,
        max_tokens: int | None = None,
        refused_prompt: Callable[[], None] = lambda: None,
    ) -> None:
        self._tag_key = tag_key
        self._sample = RequestSample(share, key, max_tokens=max_tokens, refused_prompt=refused_prompt)
        self.marker: tuple[int, ...] = ()
        self.probe_captured = False
        self._last: _Filtered | None = None

    def traced(self, reqs: Sequence[Any]) -> tuple[TracedRequest, ...]:
        """The traced requests among ``reqs``, SGLang's requests of one batch.

        Most rounds have the requests of the round before, and get the same answer.
        """
        if (last := self._last_if_of(reqs)) is not None:
            return last.traced
        traced = tuple(
            TracedRequest(index, req.rid, tag_number(self._tag_key, wish_of(req).trace_tag))
            for index, req in enumerate(reqs)
            if self._is_traced(req)
        )
        self._last = None if self.some_refuse(reqs) else _Filtered(tuple(reqs), self.probe_captured, traced)
        return traced

    def some_refuse(self, reqs: Sequence[Any]) -> bool:
        """Whether a request of ``reqs`` asks not to be traced. Then no tensor of the whole batch may be kept."""
        return self._last_if_of(reqs) is None and any(not wish_of(req).trace for req in reqs)

    def _last_if_of(self, reqs: Sequence[Any]) -> _Filtered | None:
        """The last batch's result, if ``reqs`` are the same objects. Ids do not tell: a later request may reuse one."""
        last = self._last
        if last is None or last.probe_captured != self.probe_captured or len(last.reqs) != len(reqs):
            return None
        return last if all(map(operator.is_, last.reqs, reqs)) else None

    def _is_traced(self, req: Any) -> bool:
        rid = req.rid
        if not isinstance(rid, str) or rid.startswith(HEALTH_CHECK_PREFIX):
            return False
        if rid.startswith(PROBE_PREFIX):
            return True
        if not self.probe_captured or req.multimodal_inputs is not None or req.input_embeds is not None:
            return False  # a position without a token id cannot be trained on
        if req.beam_group is not None or not wish_of(req).trace:
            return False
        return self._sample.has(rid, req.origin_input_ids, self.marker)
