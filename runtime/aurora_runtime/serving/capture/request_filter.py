"""Decides which requests of a batch are traced, and counts those that ended: what capture reads of SGLang's requests.

This module imports neither torch nor SGLang. Invariants: warm-ups and health checks are never traced, nor is a request
that asks not to be, as those of a measurement do. Until the launcher's probe is captured, only the probe is traced,
because no client sends requests before that. Without the key nobody can choose a request that is traced, or one that is
not. No trace begins while the budget is used up.
"""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from aurora_protocol.agent_api import MAX_SQUARE, LiveCounters
from aurora_protocol.tag_hash import NO_TAG, tag_number
from aurora_runtime.conversations import REMEMBERED_BEGINNINGS, beginning
from aurora_runtime.held_out_split import keyed_draw, prompt_hash
from aurora_runtime.request_wish import wish_of
from aurora_runtime.serving.capture.settings import PROBE_PREFIX

HEALTH_CHECK_PREFIX: Final = "HEALTH_CHECK"
MAX_REQUESTS: Final = 64
"""A beginning that more requests share is no conversation's."""
REMEMBERED_REQUESTS: Final = 4096
"""Requests whose draw is remembered. A running request keeps its draw, and a round does not hash its tokens again."""
SAVED_MINUTES: Final = 10.0
"""Most minutes of the budget that an idle engine saves up. A new engine begins with so many."""
LEAST_SHARE: Final = 1e-3
"""The share that is traced when the allowance is nearly used up."""


class TraceAllowance:
    """How many tokens may be traced now. It fills at the budget's pace, and each traced token takes one from it.

    The share of conversations falls exponentially with the allowance, so it settles where as many tokens are traced as
    the budget gives, however busy the engine is. A request that is small beside the allowance changes the share by
    little, so the next turn of a traced conversation is most likely traced too. Requests that run may overdraw the
    allowance, and what they take is missing later.

    One thread calls its methods, and any thread reads ``share``.

    Args:
        tokens_per_minute: the budget.
    """

    def __init__(self, tokens_per_minute: int) -> None:
        self._budget = tokens_per_minute
        self._tokens = self._limit
        self.share = self._share()
        """Share of the conversations to trace, from 0 to 1."""

    @property
    def _limit(self) -> float:
        return SAVED_MINUTES * self._budget

    def order(self, tokens_per_minute: int) -> None:
        """Change the budget. What was saved stays, within the new limit. A first budget begins with all of it."""
        begins = not self._budget
        self._budget = tokens_per_minute
        self._tokens = self._limit if begins else min(self._limit, self._tokens)
        self.share = self._share()

    def pass_time(self, seconds: float) -> None:
        """Let the allowance fill for ``seconds``."""
        self._tokens = min(self._limit, self._tokens + self._budget * seconds / 60)
        self.share = self._share()

    def spend(self, tokens: int) -> None:
        """Take traced ``tokens`` from the allowance, which they may overdraw."""
        self._tokens -= tokens
        self.share = self._share()

    def _share(self) -> float:
        if self._tokens <= 0:
            return 0.0
        return float(LEAST_SHARE ** (1 - self._tokens / self._limit))


def is_sampled(rid: str, share: float, key: bytes = b"") -> bool:
    """Whether a request is in the sample by its id, which a client may choose: a function of the id and the key."""
    return keyed_draw(key, rid.encode()) < share * (1 << 64)


class RequestSample:
    """The sample of an engine's requests: whole conversations, where a prompt belongs to one.

    A later turn attends to the states of the earlier ones, which the prefix cache holds and which are computed only
    once. Training finds them if the earlier turns were traced too. A beginning that very many requests share is no
    conversation's (``aurora_runtime.conversations``). Its requests are drawn one by one, or all traffic of one
    application would be traced, or none.

    Args:
        share: returns the share of the requests that are sampled now. What a lower one samples, a higher one does too.
        key: the lineage's :func:`aurora_runtime.held_out_split.traffic_key`.
        max_tokens: a prompt of so many tokens is never sampled.
        refused_prompt: is called once for each request that would be sampled but for its prompt.
    """

    def __init__(
        self,
        share: Callable[[], float],
        key: bytes = b"",
        *,
        max_tokens: int | None = None,
        refused_prompt: Callable[[], None] = lambda: None,
    ) -> None:
        self._share, self._key = share, key
        self._max_tokens, self._refused_prompt = max_tokens, refused_prompt
        self._draws: OrderedDict[str, bool] = OrderedDict()
        self._requests: OrderedDict[int, int] = OrderedDict()

    def has(self, rid: str, prompt: Sequence[int], marker: Sequence[int]) -> bool:
        """Whether the request is sampled. The same in all rounds of the request.

        Args:
            marker: what the chat template puts before each answer.
        """
        known = self._draws.get(rid)
        if known is None:
            known = self._draw(rid, prompt, marker)
            if known and self._max_tokens is not None and len(prompt) >= self._max_tokens:
                known = False
                self._refused_prompt()
            self._draws[rid] = known
            if len(self._draws) > REMEMBERED_REQUESTS:
                self._draws.popitem(last=False)
        else:
            self._draws.move_to_end(rid)
        return known

    def _draw(self, rid: str, prompt: Sequence[int], marker: Sequence[int]) -> bool:
        share = self._share()
        if share >= 1:
            return True
        number = self._conversation(prompt, marker)
        return is_sampled(rid, share, self._key) if number is None else number < share * (1 << 63)

    def _conversation(self, prompt: Sequence[int], marker: Sequence[int]) -> int | None:
        """The hash of the conversation's beginning. None if the prompt belongs to no conversation."""
        try:
            first = beginning(prompt, marker)
            if len(first) == len(prompt):
                return None
            number = prompt_hash(first, self._key)
        except OverflowError:  # SGLang's placeholders of images are no tokens
            return None
        requests = self._requests[number] = self._requests.pop(number, 0) + 1
        if len(self._requests) > REMEMBERED_BEGINNINGS:
            self._requests.popitem(last=False)
        return number if requests <= MAX_REQUESTS else None


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
    """Selects the requests to trace: those of ``sample`` that may be traced. ``tag_key`` hashes their tags."""

    def __init__(self, sample: RequestSample, tag_key: bytes = b"") -> None:
        self._sample, self._tag_key = sample, tag_key
        self.marker: tuple[int, ...] = ()
        """What the chat template puts before each answer, once it is known."""
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


class EndedRequests:
    """The sums of the ended requests of clients, from which live traffic judges a draft.

    A request counts once, with all of its rounds. A request that says nothing about the served draft does not count:
    one that ended in its prefill, one that asked for no speculation, and any that ends while a measurement has the pod
    (its requests carry drafts on trial). The scheduler's thread adds, and the writer's thread reads.

    Args:
        is_withdrawn: whether a measurement has the pod. Asked once for each request that ends.
    """

    def __init__(self, is_withdrawn: Callable[[], bool]) -> None:
        self._is_withdrawn = is_withdrawn
        self._sums = (0,) * 6  # replaced as one, so that a reader sees the sums of the same requests

    def add(self, req: Any) -> None:
        """A request leaves the engine. One that will be prefilled again has not ended.

        SGLang counts a request's verify rounds, those without proposals included, and keeps the count over a
        retraction (sglang/srt/managers/scheduler_components/batch_result_processor.py:832).
        """
        rounds = req.spec_verify_ct
        if not req.finished() or rounds == 0 or not wish_of(req).speculate or self._is_withdrawn():
            return
        length = len(req.output_ids) if req.finished_len is None else req.finished_len
        tokens = max(0, length - 1)
        new = (1, tokens, rounds, tokens * tokens, tokens * rounds, rounds * rounds)
        self._sums = tuple(total + more for total, more in zip(self._sums, new, strict=True))

    def counters(self) -> LiveCounters:
        """The sums since the engine started."""
        requests, tokens, rounds, *squares = self._sums
        tokens_squared, tokens_by_rounds, rounds_squared = (min(square, MAX_SQUARE) for square in squares)
        return LiveCounters(
            requests=requests,
            tokens=tokens,
            rounds=rounds,
            tokens_squared=tokens_squared,
            tokens_by_rounds=tokens_by_rounds,
            rounds_squared=rounds_squared,
        )
