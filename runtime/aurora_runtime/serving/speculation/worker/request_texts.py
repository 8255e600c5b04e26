"""Feeds lookup with the prompts and the committed tokens of running requests.

Invariants: lookup's text of a request is its prompt and its committed tokens, no token twice. A request that left the
engine leaves only what the lookup index keeps by itself. This module imports neither torch nor SGLang: requests are
read by attribute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from aurora_runtime.serving.speculation.lookup_index import LookupIndex, Proposal


@dataclass
class RequestTexts:
    """The texts of all running requests, by request id."""

    index: LookupIndex
    _indexed: dict[str, int] = field(default_factory=dict)  # answer tokens that lookup has

    def __len__(self) -> int:
        return len(self._indexed)

    def proposals(self, reqs: Sequence[Any], tokens: int) -> tuple[Proposal, ...]:
        """Add the tokens that were committed since, and ask lookup for at most ``tokens`` tokens of each request."""
        return tuple(self._proposal(req, tokens) for req in reqs)

    def ended(self, req: Any) -> None:
        """The request left the engine: it finished, was aborted, or will be prefilled again after a retraction."""
        if req.rid in self._indexed:
            self._add_committed(req)
            del self._indexed[req.rid]
        self.index.end(req.rid)

    def _proposal(self, req: Any, tokens: int) -> Proposal:
        self._add_committed(req)
        return self.index.propose(req.rid, tokens)

    def _add_committed(self, req: Any) -> None:
        answer = req.output_ids
        indexed = self._indexed.get(req.rid)
        if indexed is None:
            self.index.begin(req.rid, req.origin_input_ids)
            indexed = 0
        if len(answer) > indexed:
            self.index.extend(req.rid, answer[indexed:])
        self._indexed[req.rid] = max(indexed, len(answer))
