"""One decode round after the other: what the controller is told and decides, what came of it, and how long it took.

A round's time is the time from its start to the start of the next forward pass. It contains everything that a round
costs the engine, also the handling of its tokens. The time is unknown when the engine may have waited in between.

Under overlap scheduling on a GPU, the host begins the next round when the verification has ended. The draft then still
processes the round's tokens, and the host's clock charges this pass to the next round. While the draft is in use every
round has such a pass, so the times are right all the same. Only the first round without it is charged too much.

Invariants: the controller observes each round once and in order, or never if the engine lost its results. A request's
end is reported after the last round that it took part in. This module imports neither torch nor SGLang.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from aurora_runtime.engine.arms import OFF, Arm, Source
from aurora_runtime.serving.speculation.lookup import Proposal


class RequestOutlook(NamedTuple):
    """One running request before a round.

    Attributes:
        lookup_match: length in tokens of the suffix that lookup found elsewhere. 0: lookup has nothing.
        lookup_length: tokens that lookup can propose.
        can_draft: whether the draft has processed the request's prompt and each round since.
    """

    rid: str
    lookup_match: int
    lookup_length: int
    can_draft: bool


@dataclass(frozen=True)
class Decision:
    """What a round does.

    Attributes:
        sources: the source of each request's proposal, in the batch's order.
        explores: whether the round runs to learn something rather than because its arm seems best.
        keeps_draft: whether the draft processes the round's tokens. Otherwise no request of the batch can draft again.
        park_rounds: the next rounds that are off without a decision, unless something wakes the controller.
    """

    arm: Arm
    sources: tuple[Source, ...]
    explores: bool = False
    keeps_draft: bool = False
    park_rounds: int = 0


def plain_decision(requests: int) -> Decision:
    """A round without proposals, which is always correct."""
    return Decision(OFF, (Source.NONE,) * requests)


@dataclass(frozen=True)
class Outcome:
    """What came of a decided round.

    Attributes:
        accepted: accepted proposed tokens of each request, without the target's own token.
        milliseconds: the round's time. None: it cannot be compared, for example because a prefill was in between.
        unplayed_lookup: for each request, how many tokens of its lookup are the tokens that the round made. So a
            lookup's value is known although the round did not use it. Empty: not known.
        tokens_made: for each request, how many of the round's tokens its answer took. Fewer than were accepted: the
            answer ended within the round. 0: it had ended before, so the round says nothing about the request. Empty:
            all of them.
    """

    decision: Decision
    outlooks: Sequence[RequestOutlook]
    accepted: Sequence[int]
    milliseconds: float | None
    unplayed_lookup: Sequence[int] = ()
    tokens_made: Sequence[int] = ()

    @property
    def made(self) -> Sequence[int]:
        """The tokens that each answer took."""
        return self.tokens_made or [count + 1 for count in self.accepted]


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
            if not (req.finished() or req.is_retracted):
                made.append(count + 1)
                continue
            end = len(req.output_ids) if req.finished_len is None else req.finished_len
            answered = length + 1 - len(req.origin_input_ids)  # the last committed token is not in the KV cache yet
            made.append(max(0, min(count + 1, end - answered)))
        return tuple(made)


class RoundObserver:
    """Tells about each round once the next forward pass begins.

    Args:
        observe: is told of each round.
        request_ended: is told of each request that left the engine, after its last round.
        clock: seconds.
    """

    def __init__(
        self,
        observe: Callable[[Round, Outcome], None],
        request_ended: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._observe = observe
        self._request_ended = request_ended
        self._clock = clock
        self._round: Round | None = None
        self._committed: Sequence[Sequence[int]] | None = None
        self._comparable = True
        self._ended: list[str] = []

    def forward_begins(self) -> float:
        """A forward pass of any kind begins now. Returns the time."""
        now = self._clock()
        last, committed = self._round, self._committed
        self._round = self._committed = None
        if last is not None and committed is not None:
            self._observe(last, self._outcome(last, committed, now))
        for rid in self._ended:
            self._request_ended(rid)
        self._ended = []
        return now

    def _outcome(self, last: Round, committed: Sequence[Sequence[int]], now: float) -> Outcome:
        busy = self._comparable and any(not req.finished() for req in last.reqs)
        accepted = [len(tokens) - 1 for tokens in committed]
        made = last.tokens_made(accepted)
        lookup = last.matching_lookup([tokens[:count] for tokens, count in zip(committed, made, strict=True)])
        milliseconds = (now - last.began) * 1000 if busy else None
        return Outcome(last.decision, last.outlooks, accepted, milliseconds, lookup, made)

    def round_begins(self, current: Round) -> None:
        self._round, self._comparable = current, True

    def round_ended(self, committed: Sequence[Sequence[int]]) -> Round | None:
        """The tokens that each request got are known. Returns the round, if it is the one that began."""
        if self._round is None or len(committed) != len(self._round.reqs):
            return None
        self._committed = committed
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
