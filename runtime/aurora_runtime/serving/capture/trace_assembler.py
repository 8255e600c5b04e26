"""Assembles the records of a request (prompt chunks, verify rounds, commits) into a ``RequestTrace``.

How positions are counted: a request is its prompt followed by its answer. Prefilling ``n`` prompt tokens yields the
hidden states of those positions and the first answer token. A verify round starts when ``c`` answer tokens are
committed. Its root (node 0) is the last of these tokens, at position ``prompt + c - 1``, and has no hidden state yet.
The states of the accepted path (root, then accepted tokens) belong to positions root, root + 1, and so on. The
round's last committed token, the bonus token, gets its state as the root of the next round. So the last answer token
has no state, unless an end token cut the round short.

Invariants: a trace holds only tokens that were committed to the client. A request with a missing or contradicting
record is dropped completely and counted. Memory for unfinished requests is bounded. The module is pure: it uses neither
clock nor files.

Some requests get no last record: SGLang aborts them while they wait after a retraction, retracts them for good, or
aborts them between two chunks of their prefill. SGLang has no single place that reports the end of such a request. So
the assembler knows them by their silence, and over the memory's limit drops them before a running request.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aurora_protocol.tag_hash import NO_TAG
from aurora_runtime.conversations import ConversationSplit
from aurora_runtime.traces import ProposalSource, RequestTrace

SILENT_AFTER_ROUNDS: Final = 2
"""A request is silent after this many rounds per open request without a record of its own."""

_NO_STATES: Final = torch.empty(0)


@dataclass(frozen=True)
class Commit:
    """Answer tokens made visible by one batch: ``token_ids`` from answer index ``output_index`` on."""

    output_index: int
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class PromptChunk:
    """A prefill: hidden states of positions ``start``, ``start + 1`` and so on.

    ``prompt`` holds the whole prompt's ids. A retracted request is prefilled again, answer tokens included.
    """

    rid: str
    prompt: Sequence[int]
    start: int
    hidden: Tensor  # [n, H3]
    commit: Commit | None
    finished: bool
    tag: int = NO_TAG
    marker: tuple[int, ...] = ()  # what the chat template puts before each answer


@dataclass(frozen=True)
class VerifyRound:
    """One verify round of one request: ``n`` nodes, ``a`` accepted proposed tokens, ``K`` top tokens."""

    rid: str
    version: int
    source: ProposalSource
    draft_tokens: NDArray[np.integer]  # [n]
    next_token: NDArray[np.integer]  # [n] first child of each node, -1 for none
    next_sibling: NDArray[np.integer]  # [n] next child of the same parent, -1 for none
    path: NDArray[np.integer]  # [a + 1] node indices, the root first
    hidden: Tensor  # [a + 1, H3] of the path's nodes
    top_ids: NDArray[np.int32]  # [n, K] the target's most likely tokens
    top_logprobs: NDArray[np.float16]  # [n, K]
    uncaptured_mass: NDArray[np.float16]  # [n] probability of all other tokens
    commit: Commit | None
    finished: bool


def parents_of(next_token: Sequence[int], next_sibling: Sequence[int]) -> list[int]:
    """The parent of every node, from SGLang's tree links. -1 at the root, and at a node that no link reaches."""
    parents = [-1] * len(next_token)
    for node, child in enumerate(next_token):
        while child >= 0:
            parents[child] = node
            child = next_sibling[child]
    return parents


@dataclass(frozen=True)
class _Round:
    """A verify round whose tokens are committed.

    Attributes:
        root: the root's position.
        path: the nodes that the answer took, the root first.
        event: the round without its states, which are a view of the whole batch's.
    """

    root: int
    path: list[int]
    event: VerifyRound


@dataclass
class _OpenRequest:
    """The records of one unfinished request. ``last_round`` is how many rounds there were at its latest record."""

    prompt: list[int]
    tag: int
    marker: tuple[int, ...]
    answer: list[int] = field(default_factory=list)
    states: list[tuple[int, Tensor]] = field(default_factory=list)
    rounds: list[_Round] = field(default_factory=list)
    state_bytes: int = 0
    last_round: int = 0


class TraceAssembler:
    """The unfinished requests. ``add`` returns the trace of a request when its last record arrives.

    Args:
        top_tokens: width of ``top_ids``.
        max_tokens: limit of a trace. A longer request is cut: its trace ends here and its further records are ignored.
        max_open_bytes: limit of the hidden states of all unfinished requests. Above it silent requests are dropped, the
            oldest first, and without one the request that exceeds it.
        traffic_key: decides with a conversation whether its requests are held out.

    ``dropped`` counts dropped requests by reason.
    """

    def __init__(self, *, top_tokens: int, max_tokens: int, max_open_bytes: int, traffic_key: bytes = b"") -> None:
        self.top_tokens = top_tokens
        self.max_tokens = max_tokens
        self.max_open_bytes = max_open_bytes
        self._split = ConversationSplit(traffic_key)
        self.dropped: Counter[str] = Counter()
        self._open: OrderedDict[str, _OpenRequest] = OrderedDict()  # the one with the oldest last record first
        self._open_bytes = 0
        self._rounds = 0  # of open requests

    def __len__(self) -> int:
        return len(self._open)

    def add(self, event: PromptChunk | VerifyRound) -> RequestTrace | None:
        """Add one record. Returns the trace if this was the request's last record."""
        problem = self._add_prompt(event) if isinstance(event, PromptChunk) else self._add_round(event)
        request = self._open.get(event.rid)
        if request is None:
            return None
        self._rounds += isinstance(event, VerifyRound)
        request.last_round = self._rounds
        self._open.move_to_end(event.rid)
        if problem:
            self._drop(event.rid, problem)
            return None
        length = len(request.prompt) + len(request.answer)
        if not event.finished and length < self.max_tokens:
            self._make_room(event.rid)
            return None
        self._close(event.rid)
        if not request.rounds:
            return None
        trace = self._build_trace(request)
        if trace is None:
            self.dropped["gap"] += 1
        return trace

    def _add_prompt(self, event: PromptChunk) -> str:
        request = self._open.get(event.rid)
        if request is None:
            if event.commit is not None and event.commit.output_index > 0:
                return ""  # a retracted request whose beginning was dropped or cut
            request = self._open[event.rid] = _OpenRequest(list(event.prompt), event.tag, event.marker)
        if len(request.prompt) >= self.max_tokens:
            return "long prompt"
        self._add_states(request, event.start, event.hidden)
        return self._add_commit(request, event.commit)

    def _add_round(self, event: VerifyRound) -> str:
        request = self._open.get(event.rid)
        if request is None or event.commit is None:
            return ""  # not traced, or computed ahead for a request that had ended
        root = len(request.prompt) + event.commit.output_index - 1
        drafts, path = event.draft_tokens.tolist(), event.path.tolist()
        tokens = event.commit.token_ids
        accepted = min(len(path) - 1, len(tokens))
        if problem := self._add_commit(request, event.commit):
            return problem
        previous = request.answer[event.commit.output_index - 1] if event.commit.output_index else request.prompt[-1]
        if drafts[0] != previous or any(drafts[path[i + 1]] != tokens[i] for i in range(accepted)):
            return "path"
        self._add_states(request, root, event.hidden[: accepted + 1])
        request.rounds.append(_Round(root, path[: accepted + 1], replace(event, hidden=_NO_STATES)))
        return ""

    def _add_commit(self, request: _OpenRequest, commit: Commit | None) -> str:
        if commit is None:
            return ""
        if commit.output_index != len(request.answer):
            return "order"
        request.answer.extend(commit.token_ids)
        return ""

    def _add_states(self, request: _OpenRequest, start: int, hidden: Tensor) -> None:
        own = hidden.clone()  # a view would keep the whole batch's memory
        request.states.append((start, own))
        request.state_bytes += own.nbytes
        self._open_bytes += own.nbytes

    def _close(self, rid: str) -> None:
        self._open_bytes -= self._open.pop(rid).state_bytes

    def _drop(self, rid: str, reason: str) -> None:
        self._close(rid)
        self.dropped[reason] += 1

    def _make_room(self, rid: str) -> None:
        """Drop requests until the states fit. ``rid`` has just got a record, so it is the last to go.

        A running request is not dropped to make room for another. The request with the oldest record is nearest to its
        end. If every new request dropped it, no request would ever end.
        """
        while self._open_bytes > self.max_open_bytes:
            oldest, request = next(iter(self._open.items()))
            silent = self._rounds - request.last_round > SILENT_AFTER_ROUNDS * len(self._open)
            self._drop(oldest if silent else rid, "memory")

    def _build_trace(self, request: _OpenRequest) -> RequestTrace | None:
        tokens = request.prompt + request.answer
        start = min(at for at, _ in request.states)
        end = max(at + part.shape[0] for at, part in request.states)
        if end > len(tokens):
            return None
        hidden = request.states[0][1].new_empty((end - start, request.states[0][1].shape[1]))
        covered = torch.zeros(end - start, dtype=torch.bool)
        for at, part in request.states:
            hidden[at - start : at - start + part.shape[0]] = part
            covered[at - start : at - start + part.shape[0]] = True
        if not bool(covered.all()):
            return None
        rounds = [item.event for item in request.rounds]
        parents: list[int] = []
        on_path: list[bool] = []
        for item in request.rounds:
            parents += parents_of(item.event.next_token.tolist(), item.event.next_sibling.tolist())
            on_path += [node in item.path for node in range(item.event.draft_tokens.shape[0])]
        return RequestTrace(
            request=self._split.number(request.prompt, request.marker),
            prompt_length=len(request.prompt),
            hidden_start=start,
            tokens=torch.tensor(tokens, dtype=torch.int32),
            hidden=hidden,
            root=torch.tensor([item.root for item in request.rounds], dtype=torch.int32),
            node_count=torch.tensor([item.draft_tokens.shape[0] for item in rounds], dtype=torch.int32),
            accepted=torch.tensor([len(item.path) - 1 for item in request.rounds], dtype=torch.int32),
            version=torch.tensor([item.version for item in rounds], dtype=torch.int32),
            source=torch.tensor([item.source for item in rounds], dtype=torch.uint8),
            node_token=_joined([item.draft_tokens for item in rounds], torch.int32),
            node_parent=torch.tensor(parents, dtype=torch.int16),
            node_accepted=torch.tensor(on_path, dtype=torch.bool),
            top_ids=_joined([item.top_ids for item in rounds], torch.int32),
            top_logprobs=_joined([item.top_logprobs for item in rounds], torch.float16),
            uncaptured_mass=_joined([item.uncaptured_mass for item in rounds], torch.float16),
            tag=request.tag,
        )


def _joined(parts: Sequence[NDArray[Any]], dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(np.concatenate(parts)).to(dtype)
