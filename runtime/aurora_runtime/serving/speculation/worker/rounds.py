"""One decode round after the other: what was decided, what came of it, and how long it took.

A round's time is the time from its start to the start of the next forward pass. It contains everything that a round
costs the engine, also the handling of its tokens. The time is unknown when the engine may have waited in between.

On a GPU under overlap scheduling the host cannot tell this time. The host begins the next round while the draft's
extend still runs, and would charge the extend to that round. So device events measure the rounds. The host reads an
event one round later, when the device has passed it, and does not wait.

Under overlap scheduling a request also takes part in one round after its last one, because that round was launched
before the request's end was known. The request makes no token in it. The time of the round counts all the same.

Invariants: the policy observes each round once and in order, or never if the engine lost its results. A request's end
is reported after the last round that it took part in. This module imports neither torch nor SGLang.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from aurora_runtime.engine.arms import OFF, Source
from aurora_runtime.serving.speculation.lookup_index import Proposal
from aurora_runtime.serving.speculation.outlook import Decision, RequestOutlook
from aurora_runtime.serving.speculation.worker.policy import Learner


class Clock(Protocol):
    """Stamps of the host's time, or of a device's queue."""

    def stamp(self) -> Any:
        """A stamp of now, or one that the device takes once it has done all that was queued before."""
        ...

    def milliseconds(self, first: Any, last: Any) -> float:
        """The time between two stamps. Waits for the second."""
        ...


class HostClock:
    """The host's time."""

    def stamp(self) -> float:
        return time.perf_counter()

    def milliseconds(self, first: float, last: float) -> float:
        return (last - first) * 1000


@dataclass(frozen=True)
class Round:
    """A decode round of B requests that was decided.

    Attributes:
        proposals: what lookup proposes.
        reqs: SGLang's requests, in the batch's order.
        rows: rows of the request table.
        lengths: committed tokens of each request before the round.
        began: stamp of its start.
    """

    decision: Decision
    outlooks: tuple[RequestOutlook, ...]
    proposals: tuple[Proposal, ...]
    reqs: tuple[Any, ...]
    rows: tuple[int, ...]
    lengths: tuple[int, ...]
    began: Any

    @property
    def drafts(self) -> bool:
        return self.decision.arm.drafts

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


def is_running(req: Any) -> bool:
    """Whether the engine still answers a request.

    Under overlap scheduling a request takes part in one more round, which was launched before its end was known.
    """
    return not (req.finished() or req.is_retracted)


def tokens_made(current: Round, accepted: Sequence[int]) -> tuple[int, ...]:
    """How many of a round's tokens each answer has taken: all of them, unless the answer ended before or within.

    ``accepted`` are the accepted proposed tokens of each request. A request whose end the engine has not processed yet
    counts as running.
    """
    made = []
    for req, length, count in zip(current.reqs, current.lengths, accepted, strict=True):
        if is_running(req):
            made.append(count + 1)
        else:
            end = len(req.output_ids) if req.finished_len is None else req.finished_len
            made.append(max(0, min(count + 1, end - _answered(req, length))))
    return tuple(made)


def plain_decision(requests: int) -> Decision:
    """A round without proposals, which is always correct."""
    return Decision(OFF, (Source.NONE,) * requests, explores=False)


@dataclass(frozen=True)
class _EndedRound:
    """A round that the policy has not observed.

    Attributes:
        committed: the tokens that each request got.
        ended: stamp of its end; None where the time cannot be compared with others.
    """

    current: Round
    accepted: tuple[int, ...]
    committed: Sequence[Sequence[int]]
    ended: Any


class RoundObserver:
    """Tells the policy about each round once the next forward pass begins.

    Args:
        rounds_late: tell so many rounds later. 1 for a device's clock, whose stamps the device has to reach first.
    """

    def __init__(self, policy: Learner, clock: Clock | None = None, *, rounds_late: int = 0) -> None:
        self._policy = policy
        self._clock = clock or HostClock()
        self._rounds_late = rounds_late
        self._round: Round | None = None
        self._accepted: tuple[int, ...] | None = None
        self._committed: Sequence[Sequence[int]] = ()
        self._comparable = True
        self._ended: list[str] = []
        self._untold: deque[tuple[_EndedRound | None, list[str]]] = deque()  # each with the requests that then ended

    def forward_begins(self) -> Any:
        """A forward pass of any kind begins now. Returns its stamp."""
        now = self._clock.stamp()
        self._untold.append((self._ended_round(now), self._ended))
        self._ended = []
        self._tell(self._rounds_late)
        return now

    def tell_all(self) -> None:
        """Tell the policy about each round whose results are known. Waits for the device if rounds are told late."""
        self._tell(0)

    def _ended_round(self, now: Any) -> _EndedRound | None:
        last, accepted = self._round, self._accepted
        self._round = self._accepted = None
        if last is None or accepted is None:
            return None
        busy = self._comparable and any(not req.finished() for req in last.reqs)
        committed = self._committed or _committed_by_requests(last, accepted)
        return _EndedRound(last, accepted, committed, now if busy else None)

    def _tell(self, keep: int) -> None:
        while len(self._untold) > keep:
            last, ended = self._untold.popleft()
            if last is not None:
                self._observe(last)
            for rid in ended:
                self._policy.request_ended(rid)

    def _observe(self, last: _EndedRound) -> None:
        current = last.current
        milliseconds = None if last.ended is None else self._clock.milliseconds(current.began, last.ended)
        made = tokens_made(current, last.accepted)
        lookup = current.matching_lookup([tokens[:count] for tokens, count in zip(last.committed, made, strict=True)])
        self._policy.observe(current.decision, current.outlooks, last.accepted, milliseconds, lookup, made)

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
        """A request left the engine. One of a round that is not told yet ends after that round.

        Others end at once: only a decode round empties the list, and none may come for hours.
        """
        untold = [last.current for last, _ in self._untold if last is not None]
        if any(req.rid == rid for current in filter(None, [self._round, *untold]) for req in current.reqs):
            self._ended.append(rid)
        else:
            self._policy.request_ended(rid)


def _committed_by_requests(current: Round, accepted: Sequence[int]) -> list[Sequence[int]]:
    """The tokens that each request got in a round, read from the requests. A request that ended may have cut some."""
    committed = []
    for req, length, count in zip(current.reqs, current.lengths, accepted, strict=True):
        start = _answered(req, length)
        committed.append(req.output_ids[start : start + count + 1])
    return committed


def _answered(req: Any, length: int) -> int:
    """The tokens of a request's answer before a round. The last committed token is not in the KV cache yet."""
    answered: int = length + 1 - len(req.origin_input_ids)
    return answered
