"""What is known on the host about each running request: its text for lookup, and how far the draft is behind.

Invariants: lookup's text of a request is its prompt and its committed tokens, no token twice. A request that left the
engine leaves nothing behind. This module imports neither torch nor SGLang: requests are read by attribute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from aurora_runtime.serving.speculation.lookup_index import LookupIndex, Proposal
from aurora_runtime.serving.speculation.outlook import CANNOT_DRAFT, RequestOutlook


@dataclass
class TrackedRequest:
    """A running request.

    Attributes:
        indexed: answer tokens that lookup has.
        pending: committed tokens that the draft has not processed, or CANNOT_DRAFT.
    """

    indexed: int = 0
    pending: int = 0


@dataclass
class TrackedRequests:
    """All running requests of the engine, by request id."""

    index: LookupIndex
    _requests: dict[str, TrackedRequest] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._requests)

    def before_round(self, reqs: Sequence[Any], tokens: int) -> tuple[tuple[RequestOutlook, ...], tuple[Proposal, ...]]:
        """Update lookup with the tokens that were committed since, and ask it for at most ``tokens`` tokens each."""
        proposals = []
        outlooks = []
        for req in reqs:
            tracked = self._update_text(req)
            proposal = self.index.propose(req.rid, tokens)
            proposals.append(proposal)
            outlooks.append(RequestOutlook(req.rid, proposal.match_length, len(proposal.tokens), tracked.pending))
        return tuple(outlooks), tuple(proposals)

    def pending(self, rid: str) -> int:
        return self._requests[rid].pending

    def skipped(self, rid: str, committed: int, capacity: int) -> None:
        """The draft did not process ``committed`` tokens. Behind more than ``capacity``, it cannot catch up."""
        tracked = self._requests.get(rid)
        if tracked is None or tracked.pending == CANNOT_DRAFT:
            return
        tracked.pending += committed
        if tracked.pending > capacity:
            tracked.pending = CANNOT_DRAFT

    def caught_up(self, rid: str) -> None:
        """The draft has processed every committed token."""
        if tracked := self._requests.get(rid):
            tracked.pending = 0

    def lost(self, rid: str) -> None:
        """The draft cannot serve this request any more."""
        self._requests.setdefault(rid, TrackedRequest()).pending = CANNOT_DRAFT

    def ended(self, req: Any) -> None:
        """The request left the engine: it finished, was aborted, or will be prefilled again after a retraction."""
        if req.rid in self._requests:
            self._update_text(req)
            del self._requests[req.rid]
        self.index.end(req.rid)

    def _update_text(self, req: Any) -> TrackedRequest:
        tracked = self._requests.get(req.rid)
        if tracked is None:
            tracked = self._requests[req.rid] = TrackedRequest()
            self.index.begin(req.rid, req.origin_input_ids)
        answer = req.output_ids
        if len(answer) > tracked.indexed:
            self.index.extend(req.rid, answer[tracked.indexed :])
            tracked.indexed = len(answer)
        return tracked
