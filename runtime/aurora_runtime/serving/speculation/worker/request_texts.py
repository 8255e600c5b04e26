"""Feeds lookup with the prompts and the committed tokens of running requests.

Invariants: lookup's text of a request is its prompt and its committed tokens, no token twice. A request whose last
tokens are not known on the host gets no proposal. A request that left the engine leaves only what the lookup index
keeps by itself. This module imports neither torch nor SGLang: requests are read by attribute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from aurora_runtime.request_wish import wish_of
from aurora_runtime.serving.speculation.lookup_index import LookupIndex, Proposal

_NOTHING: Final = Proposal()


@dataclass
class RequestTexts:
    """The texts of all running requests, by request id."""

    index: LookupIndex
    _indexed: dict[str, int] = field(default_factory=dict)  # answer tokens that lookup has

    def proposals(
        self, reqs: Sequence[Any], lengths: Sequence[int], recent: Sequence[Sequence[int]], tokens: int
    ) -> tuple[Proposal, ...]:
        """Add the tokens that were committed since, and ask lookup for at most ``tokens`` tokens of each request.

        Args:
            lengths: tokens of each request in the target's KV cache: all but the last committed token.
            recent: tokens of each request's last round, which the request itself may lack under overlap scheduling.
        """
        return tuple(
            self.index.propose(req.rid, tokens)
            if self._add_committed(req, length, last) and wish_of(req).speculate
            else _NOTHING
            for req, length, last in zip(reqs, lengths, recent, strict=True)
        )

    def match_lengths(self, reqs: Sequence[Any]) -> list[int]:
        """How long lookup's match is for each request, in the tokens that the request has by now."""
        lengths = []
        for req in reqs:
            self._add_committed(req, 0, ())
            lengths.append(self.index.propose(req.rid, 1).match_length if wish_of(req).speculate else 0)
        return lengths

    def ended(self, req: Any) -> None:
        """The request left the engine: it finished, was aborted, or will be prefilled again after a retraction.

        One that was only in rounds without lookup is indexed now, if others may be answered from it.
        """
        if req.rid in self._indexed or (self.index.keeps_ended and wish_of(req).is_shared):
            self._add_committed(req, 0, ())
        self._indexed.pop(req.rid, None)
        self.index.end(req.rid)

    def _add_committed(self, req: Any, length: int, recent: Sequence[int]) -> bool:
        """Whether lookup now has all committed tokens of the request."""
        indexed = self._indexed.get(req.rid)
        if indexed is None:
            wish = wish_of(req)
            self.index.begin(req.rid, req.origin_input_ids, may_share=wish.is_shared, tenant=wish.tenant)
            indexed = 0
        new = list(req.output_ids[indexed:])
        missing = length + 1 - len(req.origin_input_ids) - indexed - len(new)
        if 0 < missing <= len(recent):
            new += recent[-missing:]
            missing = 0
        self.index.extend(req.rid, new)
        self._indexed[req.rid] = indexed + len(new)
        return missing <= 0
