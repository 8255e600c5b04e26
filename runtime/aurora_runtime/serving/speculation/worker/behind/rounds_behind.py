"""Decides rounds without the last round's results, so that the host never makes the device wait.

Under overlap scheduling the host launches round N+1 while the device runs round N. To decide from the tokens of round N
the host would have to wait for them, and the device would idle until round N+1 is launched. Here the decision of round
N+1 comes from the results up to round N-1, and lookup's tokens from the device (``device_texts.py``). What was really
proposed arrives with the results of its round.

So before a round nobody knows what lookup will have. The policy is told the match of the round before, and that lookup
proposes in any case. It learns what came of lookup after such a match, where lookup had nothing as well. Where lookup
has nothing in a round that drafts, the draft proposes. The request's trace calls such a proposal lookup's, because the
host does not know in time, so training learns nothing from its rejected tokens.

The host waits in two cases: when the draft must catch up, which needs exact lengths, and when a request is prefilled
again while a round with it is under way.

Never run on a GPU. Tests run it on a CPU, in a miniature engine.

Invariants:
- A decision changes what is proposed, never what is answered.
- Which results a decision knows follows from the order of forward passes alone, not from time. So all tensor-parallel
  ranks know the same, and decide alike when to wait.
- The policy observes each round once and in order. A request's end is reported after its last round.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor

from aurora_runtime.engine.arms import Source
from aurora_runtime.serving.speculation.lookup_index import Proposal
from aurora_runtime.serving.speculation.outlook import CANNOT_DRAFT, Decision, RequestOutlook
from aurora_runtime.serving.speculation.worker.behind.device_texts import DeviceTexts
from aurora_runtime.serving.speculation.worker.draft_progress import DraftProgress
from aurora_runtime.serving.speculation.worker.early_results import copy_to_host
from aurora_runtime.serving.speculation.worker.policy import Learner
from aurora_runtime.serving.speculation.worker.rounds import Clock, Round, is_running, tokens_made

SHORTEST_MATCH: Final = 1
"""The match that is assumed where none is known: lookup may have something by the time of the round."""
_NOTHING: Final = Proposal()


@dataclass(frozen=True)
class _Results:
    """A round's results: B requests, n nodes each, N tokens of lookup."""

    tokens: list[list[int]]  # [B, n]
    counts: list[int]  # [B] committed tokens
    lengths: list[int]  # [B] committed tokens before the round
    match_lengths: list[int]  # [B]
    next_match_lengths: list[int]  # [B] those of the next round
    lookups: list[list[int]]  # [B, N]

    def proposals(self) -> tuple[Proposal, ...]:
        pairs = zip(self.lookups, self.match_lengths, strict=True)
        return tuple(Proposal(tuple(tokens), match) if match else _NOTHING for tokens, match in pairs)


@dataclass
class _RoundUnderWay:
    """A round whose results the host does not have.

    Attributes:
        number: the number of its forward pass.
        packed: the results, [B, n + 4 + N].
        arrived: event after the copy of ``packed``.
        ended: stamp of its end; None while it is unknown, and where the time cannot be compared with others.
        former_draft: another draft serves since the round was decided.
    """

    number: int
    current: Round
    packed: Tensor
    arrived: Any | None
    began: Any
    ended: Any = None
    former_draft: bool = False

    def read(self) -> _Results:
        if self.arrived is not None:
            self.arrived.synchronize()
        nodes = self.current.decision.arm.width
        counts, lengths, match_lengths, next_match_lengths = self.packed[:, nodes : nodes + 4].T.tolist()
        tokens, lookups = self.packed[:, :nodes].tolist(), self.packed[:, nodes + 4 :].tolist()
        return _Results(tokens, counts, lengths, match_lengths, next_match_lengths, lookups)


class RoundsBehind:
    """The rounds under way, and what is known of their requests.

    Args:
        longest: tokens that lookup proposes.
        decide: returns the decision that all ranks agree on.
        settled: is told of each round whose results arrived, and of its accepted tokens.
    """

    def __init__(
        self,
        texts: DeviceTexts,
        clock: Clock,
        policy: Learner,
        progress: DraftProgress,
        longest: int,
        *,
        decide: Callable[[Sequence[RequestOutlook]], Decision],
        settled: Callable[[Round, Sequence[int]], None],
    ) -> None:
        self.texts = texts
        self._clock = clock
        self._policy = policy
        self._progress = progress
        self._longest = longest
        self._decide = decide
        self._settled = settled
        self._under_way: deque[_RoundUnderWay] = deque()
        self._timed: _RoundUnderWay | None = None  # the last round, while nothing else has begun since
        self._interrupted = False
        self._began: Any = None
        self._passes = 0
        self._match_lengths: dict[str, int] = {}
        self._ended: list[str] = []

    def begin(self, batch: Any) -> Round:
        """Decide the next round of ``batch``."""
        self._passes += 1
        self._interrupted = False
        self._began = self._clock.stamp()
        if self._timed is not None and any(not req.finished() for req in self._timed.current.reqs):
            self._timed.ended = self._began
        self._timed = None
        # SGLang has processed the results of all passes but the last one.
        self._settle(self._passes - 2)
        reqs, rows = tuple(batch.reqs), tuple(batch.req_pool_indices_cpu.tolist())
        on_device = self.texts.round_begins(reqs, rows, batch)
        outlooks = self._outlooks(reqs)
        decision = self._decide(outlooks)
        lengths: tuple[int, ...] = ()
        if self._progress.will_catch_up(decision.arm, reqs):
            self._settle(self._passes)
            lengths = tuple(on_device.lengths.tolist())
            outlooks = self._outlooks(reqs)
        nothing = (_NOTHING,) * len(reqs)
        return Round(launched(decision), outlooks, nothing, reqs, rows, lengths, None, on_device)

    def verified(self, current: Round, batch_result: Any) -> None:
        """The round's verification is queued: queue what the host and the next round need of it."""
        on_device = current.on_device
        counts = batch_result.accept_lens
        tokens = batch_result.next_token_ids.view(counts.shape[0], -1)
        next_match_lengths = self.texts.committed(current.reqs, on_device, tokens, counts)
        columns = [counts, on_device.lengths, on_device.lookups.match_lengths, next_match_lengths]
        stacked = torch.stack([column.long() for column in columns], 1)
        [packed], arrived = copy_to_host([torch.cat([tokens.long(), stacked, on_device.lookups.tokens], 1)])
        late = _RoundUnderWay(self._passes, current, packed, arrived, self._began)
        self._timed = None if self._interrupted else late
        self._under_way.append(late)

    def interrupted(self) -> None:
        """Something other than the round's own work takes time in the round that began."""
        self._interrupted = True

    def prefill_begins(self, reqs: Sequence[Any]) -> None:
        self._passes += 1
        self._timed = None
        if any(req in late.current.reqs for late in self._under_way for req in reqs):
            self._settle(self._passes)  # retracted in the meantime: the rounds must not count after the prefill
        for req in reqs:
            self._forget(req.rid)

    def request_ended(self, rid: str) -> None:
        self._forget(rid)
        if self._is_under_way(rid):
            self._ended.append(rid)
        else:  # only a decode round empties the list, and none may come for hours
            self._policy.request_ended(rid)

    def draft_changed(self) -> None:
        """Another draft serves from the next round on, of which the rounds under way tell nothing."""
        for late in self._under_way:
            late.former_draft = True

    def _forget(self, rid: str) -> None:
        self.texts.forget(rid)
        self._match_lengths.pop(rid, None)

    def _outlooks(self, reqs: Sequence[Any]) -> tuple[RequestOutlook, ...]:
        return tuple(
            RequestOutlook(
                req.rid,
                self._match_lengths.get(req.rid, SHORTEST_MATCH),
                self._longest,
                self._progress.pending(req.rid),
            )
            for req in reqs
        )

    def _is_under_way(self, rid: str) -> bool:
        return any(rid == req.rid for late in self._under_way for req in late.current.reqs)

    def _settle(self, number: int) -> None:
        """Take in the results of all rounds up to the forward pass ``number``."""
        while self._under_way and self._under_way[0].number <= number:
            late = self._under_way.popleft()
            self._take(late, late.read())
        waiting = [rid for rid in self._ended if self._is_under_way(rid)]
        for rid in self._ended:
            if rid not in waiting:
                self._policy.request_ended(rid)
        self._ended = waiting

    def _take(self, late: _RoundUnderWay, results: _Results) -> None:
        current = replace(
            late.current,
            decision=played(late.current.decision, late.current.outlooks, results.match_lengths),
            proposals=results.proposals(),
            lengths=tuple(results.lengths),
        )
        accepted = tuple(count - 1 for count in results.counts)
        committed = [row[:count] for row, count in zip(results.tokens, results.counts, strict=True)]
        self._settled(current, accepted)
        milliseconds = None if late.ended is None else self._clock.milliseconds(late.began, late.ended)
        made = tokens_made(current, accepted)
        lookup = current.matching_lookup([tokens[:count] for tokens, count in zip(committed, made, strict=True)])
        decision = without_draft(current.decision) if late.former_draft else current.decision
        self._policy.observe(decision, current.outlooks, accepted, milliseconds, lookup, made)
        for req, match in zip(current.reqs, results.next_match_lengths, strict=True):
            if is_running(req):
                self._match_lengths[req.rid] = max(match, SHORTEST_MATCH)


def without_draft(decision: Decision) -> Decision:
    """The decision as if nothing had been proposed where the draft was: its tokens were those of another draft."""
    sources = (Source.NONE if source is Source.DRAFT else source for source in decision.sources)
    return replace(decision, sources=tuple(sources))


def launched(decision: Decision) -> Decision:
    """The decision as it is carried out: a request for which the draft was not chosen takes what lookup has."""
    if not decision.arm.steps:
        return decision
    sources = (source if source is Source.DRAFT else Source.LOOKUP for source in decision.sources)
    return replace(decision, sources=tuple(sources))


def played(decision: Decision, outlooks: Sequence[RequestOutlook], match_lengths: Sequence[int]) -> Decision:
    """The decision that was carried out, with the sources that really proposed: lookup may have had nothing."""

    def really(source: Source, outlook: RequestOutlook, match: int) -> Source:
        if source is not Source.LOOKUP or match:
            return source
        return Source.DRAFT if decision.arm.drafts and outlook.pending != CANNOT_DRAFT else Source.NONE

    sources = map(really, decision.sources, outlooks, match_lengths)
    return replace(decision, sources=tuple(sources))
