"""The trace of one request, and shards of them as safetensors bytes: what capture writes and training reads.

Invariants:
- a shard holds whole requests: prompt, answer, every verify round, so that a reader never joins shards;
- every position with hidden states and every verify node is one that the engine really computed;
- the split into training and held-out requests depends on the prompt alone, so that the same prompt never lies on
  both sides, on whichever pod it was served.

``H3`` is the width of the concatenated auxiliary hidden states (3H for EAGLE-3), ``K`` the number of the target's
most likely tokens kept per node.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from safetensors.torch import load, save
from torch import Tensor

from aurora_runtime.errors import TraceFormatError

HELD_OUT_SHARE: Final = 8
"""One request in this many is held out: never trained on; used to evaluate drafts and to measure candidates."""


def prompt_hash(tokens: Sequence[int]) -> int:
    """A 63-bit hash of a prompt's token ids."""
    data = b"".join(token.to_bytes(4, "little") for token in tokens)
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big") >> 1


def is_held_out(request: int) -> bool:
    """Whether a request with this prompt hash belongs to the held-out side."""
    return request % HELD_OUT_SHARE == 0


@dataclass(frozen=True)
class RequestTrace:
    """One request as it was served.

    ``L`` tokens (prompt, then committed answer), ``S`` positions with hidden states, ``R`` verify rounds with ``M``
    nodes in all. Round ``r`` verified ``node_count[r]`` nodes; node 0 is the root: the token at ``root[r]``, verified
    in the round before. Nodes of all rounds are concatenated.
    """

    request: int
    prompt_length: int
    hidden_start: int  # first position with hidden states: a prefix-cache hit skips those before it
    tokens: Tensor  # [L] int32
    hidden: Tensor  # [S, H3] float16 or bfloat16; position hidden_start + i
    root: Tensor  # [R] int32: position of the round's root in ``tokens``
    node_count: Tensor  # [R] int32
    accepted: Tensor  # [R] int32: drafts accepted, without the bonus token
    version: Tensor  # [R] int32: draft version in force
    node_token: Tensor  # [M] int32
    node_parent: Tensor  # [M] int16: index within the round, -1 at the root
    node_accepted: Tensor  # [M] bool: on the accepted path (the root always is)
    top_ids: Tensor  # [M, K] int32: the target's most likely next tokens at the node
    top_logprobs: Tensor  # [M, K] float16
    rest: Tensor  # [M] float16: probability mass outside the top K

    def __post_init__(self) -> None:
        rounds, nodes = self.root.shape[0], self.node_token.shape[0]
        problems = []
        if self.hidden_start + self.hidden.shape[0] > self.tokens.shape[0]:
            problems.append("more hidden states than tokens")
        if any(t.shape[0] != rounds for t in (self.node_count, self.accepted, self.version)):
            problems.append("round tensors differ in length")
        if any(
            t.shape[0] != nodes
            for t in (self.node_parent, self.node_accepted, self.top_ids, self.top_logprobs, self.rest)
        ) or nodes != int(self.node_count.sum()):
            problems.append("node tensors differ in length")
        if problems:
            raise TraceFormatError("; ".join(problems))

    @property
    def answer_tokens(self) -> int:
        return self.tokens.shape[0] - self.prompt_length

    @property
    def held_out(self) -> bool:
        return is_held_out(self.request)


_FLAT = (
    "tokens",
    "hidden",
    "root",
    "node_count",
    "accepted",
    "version",
    "node_token",
    "node_parent",
    "node_accepted",
    "top_ids",
    "top_logprobs",
    "rest",
)
_BY_TOKENS, _BY_HIDDEN = {"tokens"}, {"hidden"}
_BY_ROUNDS = {"root", "node_count", "accepted", "version"}


def columns(traces: Sequence[RequestTrace]) -> dict[str, Tensor]:
    """Concatenate traces into a shard's tensors; ``index [Q, 7]`` int64 says where each request's rows end."""
    if not traces:
        raise TraceFormatError("a shard holds at least one request")
    index = torch.tensor(
        [
            [
                t.request,
                t.prompt_length,
                t.hidden_start,
                t.tokens.shape[0],
                t.hidden.shape[0],
                t.root.shape[0],
                t.node_token.shape[0],
            ]
            for t in traces
        ],
        dtype=torch.int64,
    )
    return {"index": index, **{name: torch.cat([getattr(t, name) for t in traces]).contiguous() for name in _FLAT}}


def encode(traces: Sequence[RequestTrace]) -> bytes:
    """A shard as one safetensors object."""
    return save(columns(traces))


def decode(data: bytes) -> Iterator[RequestTrace]:
    """The traces of a shard, in order; tensors are views. Raises :class:`TraceFormatError`."""
    tensors = load(data)
    if missing := {"index", *_FLAT} - tensors.keys():
        raise TraceFormatError(f"tensors missing: {', '.join(sorted(missing))}")
    at = {"tokens": 0, "hidden": 0, "rounds": 0, "nodes": 0}
    for request, prompt_length, hidden_start, n_tokens, n_hidden, n_rounds, n_nodes in tensors["index"].tolist():
        size = {"tokens": n_tokens, "hidden": n_hidden, "rounds": n_rounds, "nodes": n_nodes}
        parts = {}
        for name in _FLAT:
            axis = (
                "tokens"
                if name in _BY_TOKENS
                else "hidden"
                if name in _BY_HIDDEN
                else "rounds"
                if name in _BY_ROUNDS
                else "nodes"
            )
            parts[name] = tensors[name][at[axis] : at[axis] + size[axis]]
        yield RequestTrace(request=request, prompt_length=prompt_length, hidden_start=hidden_start, **parts)
        for axis, count in size.items():
            at[axis] += count
