"""One decided round after the other: what was decided, what came of it, and how long it took.

A round's time is the time from its start to the start of the next forward pass. It contains everything that a round
costs the engine, also the handling of its tokens. The time is unknown when the engine may have waited in between.

Under overlap scheduling on a GPU, the host begins the next round when the verification has ended. The draft then still
processes the round's tokens, and the host's clock charges this pass to the next round. While the draft is in use every
round has such a pass, so the times are right all the same. Only the first round without it is charged too much.

Invariants: the policy observes each round once and in order, or never if the engine lost its results. A request's end
is reported after the last round that it took part in. This module imports neither torch nor SGLang.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from aurora_runtime.engine.arms import Source
from aurora_runtime.serving.speculation.lookup_index import Proposal
from aurora_runtime.serving.speculation.policy import Decision, Outcome, RequestOutlook


@dataclass(frozen=True)
class Round:
    """A decode round of B requests that was decided.

    Attributes:
        proposals: what lookup proposes.
        reqs: SGLang's requests, in the batch's order.
        lengths: committed tokens of each request before the round.
        began: seconds on the observer's clock.
    """

    decision: Decision
    outlooks: tuple[RequestOutlook, ...]
    proposals: tuple[Proposal, ...]
    reqs: tuple[Any, ...]
    lengths: tuple[int, ...]
    began: float

    def proposed(self, place: int) -> int:
        """How many tokens the request at ``place`` was proposed. Fillers do not count."""
        source, steps = self.decision.sources[place], self.decision.arm.steps
        if source is Source.LOOKUP:
            return min(len(self.proposals[place].tokens), steps)
        return steps if source is Source.DRAFT else 0

    def matching_lookup(self, committed: Sequence[Sequence[int]]) -> tuple[int, ...]:
        """How many tokens of each request's lookup are the tokens that the round committed."""
        counts = []
        for proposal, tokens in zip(self.proposals, committed, strict=True):
            count = 0
            for proposed, token in zip(proposal.tokens, tokens, strict=False):
                if proposed != token:
                    break
                count += 1
            counts.append(count)
        return tuple(counts)

    def tokens_made(self, accepted: Sequence[int]) -> tuple[int, ...]:
        """How many of the round's tokens each answer has taken: all of them, unless it ended before or within.

        Under overlap scheduling a request takes part in one more round, which was launched before its end was known. A
        request whose end the engine has not processed yet counts as running.
        """
        made = []
        for req, length, count in zip(self.reqs, self.lengths, accepted, strict=True):
            if is_running(req):
                made.append(count + 1)
            else:
                end = len(req.output_ids) if req.finished_len is None else req.finished_len
                made.append(max(0, min(count + 1, end - _answered(req, length))))
        return tuple(made)

    def committed_by_requests(self, accepted: Sequence[int]) -> list[Sequence[int]]:
        """The tokens that each request got, read from the requests. A request that ended may have cut some."""
        committed = []
        for req, length, count in zip(self.reqs, self.lengths, accepted, strict=True):
            start = _answered(req, length)
            committed.append(req.output_ids[start : start + count + 1])
        return committed


def is_running(req: Any) -> bool:
    """Whether the engine still answers a request."""
    return not (req.finished() or req.is_retracted)


def _answered(req: Any, length: int) -> int:
    """The tokens of a request's answer before a round. The last committed token is not in the KV cache yet."""
    answered: int = length + 1 - len(req.origin_input_ids)
    return answered


class RoundObserver:
    """Tells about each round once the next forward pass begins.

    Args:
        observe: is told of each round.
        request_ended: is told of each request that left the engine, after its last round.
        clock: seconds.
    """

    def __init__(
        self,
        observe: Callable[[Outcome], None],
        request_ended: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._observe = observe
        self._request_ended = request_ended
        self._clock = clock
        self._round: Round | None = None
        self._accepted: tuple[int, ...] | None = None
        self._committed: Sequence[Sequence[int]] = ()
        self._comparable = True
        self._ended: list[str] = []

    def forward_begins(self) -> float:
        """A forward pass of any kind begins now. Returns the time."""
        now = self._clock()
        last, accepted = self._round, self._accepted
        self._round = self._accepted = None
        if last is not None and accepted is not None:
            self._observe(self._outcome(last, accepted, now))
        for rid in self._ended:
            self._request_ended(rid)
        self._ended = []
        return now

    def _outcome(self, last: Round, accepted: Sequence[int], now: float) -> Outcome:
        busy = self._comparable and any(not req.finished() for req in last.reqs)
        made = last.tokens_made(accepted)
        committed = self._committed or last.committed_by_requests(accepted)
        lookup = last.matching_lookup([tokens[:count] for tokens, count in zip(committed, made, strict=True)])
        milliseconds = (now - last.began) * 1000 if busy else None
        return Outcome(last.decision, last.outlooks, accepted, milliseconds, lookup, made)

    def round_begins(self, current: Round) -> None:
        self._round, self._comparable = current, True

    def round_ended(self, accepted: Sequence[int], committed: Sequence[Sequence[int]] = ()) -> Round | None:
        """The accepted proposed tokens of each request are known. Returns the round, if it is the one that began.

        ``committed``: the tokens that each request got. Empty: the requests have them when the next forward pass
        begins.
        """
        if self._round is None or len(accepted) != len(self._round.reqs):
            return None
        self._accepted, self._committed = tuple(accepted), committed
        return self._round

    def involves(self, reqs: Sequence[Any]) -> bool:
        """Whether any of ``reqs`` takes part in the last round."""
        return self._round is not None and any(req in self._round.reqs for req in reqs)

    def interrupted(self) -> None:
        """Something other than the round's own work takes time before the next forward pass."""
        self._comparable = False

    def request_ended(self, rid: str) -> None:
        """A request left the engine. One of a round that is not told yet ends after that round."""
        if self._round is not None and any(req.rid == rid for req in self._round.reqs):
            self._ended.append(rid)
        else:
            self._request_ended(rid)
