"""The trace of one request, and shards of traces as safetensors bytes: written by capture, read by training.

Invariants:
- A shard holds whole requests with prompt, answer and every verify round, so that a reader never joins shards.
- The engine really computed every position with hidden states and every verify node.

Optional tensors: a shard has either ``hidden`` or ``hidden_float8`` and ``hidden_scale``. It has ``tag [Q]`` int64 only
if a trace in it has a tag. A reader ignores tensors that it does not know, and refuses an unknown source.

``H3`` is the width of the concatenated auxiliary hidden states (3H for EAGLE-3), ``K`` the number of the target's
most likely tokens kept per node.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from aurora_protocol.pod_settings import StateType
from aurora_protocol.tag_hash import NO_TAG
from aurora_runtime.errors import TraceFormatError
from aurora_runtime.held_out_split import MAX_MEASURED_PROMPT_TOKENS, is_held_out
from aurora_runtime.packed_states import PACKED_TYPE, SCALE_TYPE, pack, unpack
from aurora_runtime.shard_header import INDEX_COLUMNS

ATTENDED_POSITIONS: Final = 4096
"""Positions up to its last root that a training example keeps. Capture leaves states further before the answer in the
engine."""


class ProposalSource(IntEnum):
    """Who proposed the nodes of a verify round below its root, as a trace stores it."""

    NONE = 0  # nobody: the round verifies the root only, or its other nodes are padding
    LOOKUP = 1
    DRAFT = 2


@dataclass(frozen=True)
class RequestTrace:
    """One request as it was served.

    The trace holds ``L`` tokens (prompt, then committed answer), ``S`` positions with hidden states, and ``R`` verify
    rounds with ``M`` nodes in all. Round ``r`` verified ``node_count[r]`` nodes. Its node 0 is the root: the token at
    position ``root[r]``, which the round before verified. The nodes of all rounds are concatenated.
    """

    request: int  # number of the conversation (aurora_runtime.conversations), or of a prompt that belongs to none
    prompt_length: int
    hidden_start: int  # first position with hidden states: a prefix-cache hit skips those before it
    tokens: Tensor  # [L] int32
    hidden: Tensor  # [S, H3] float16 or bfloat16; row i belongs to position hidden_start + i
    root: Tensor  # [R] int32: position of the round's root in ``tokens``
    node_count: Tensor  # [R] int32
    accepted: Tensor  # [R] int32: proposed tokens accepted, without the bonus token
    version: Tensor  # [R] int32: draft version in force
    source: Tensor  # [R] uint8: ProposalSource of the round
    node_token: Tensor  # [M] int32
    node_parent: Tensor  # [M] int16: index within the round, -1 at the root
    node_accepted: Tensor  # [M] bool: on the accepted path (the root always is)
    top_ids: Tensor  # [M, K] int32: the target's most likely next tokens at the node
    top_logprobs: Tensor  # [M, K] float16
    uncaptured_mass: Tensor  # [M] float16: probability mass outside the top K
    tag: int = NO_TAG  # number of the client's tag (aurora_runtime.request_wish)

    def __post_init__(self) -> None:
        rounds, nodes = self.root.shape[0], self.node_token.shape[0]
        problems = []
        if self.hidden_start + self.hidden.shape[0] > self.tokens.shape[0]:
            problems.append("more hidden states than tokens")
        if any(getattr(self, name).shape[0] != rounds for name in _BY_ROUNDS):
            problems.append("round tensors differ in length")
        if any(getattr(self, name).shape[0] != nodes for name in _BY_NODES) or nodes != int(self.node_count.sum()):
            problems.append("node tensors differ in length")
        if problems:
            raise TraceFormatError("; ".join(problems))
        if rounds and not 0 <= int(self.source.min()) <= int(self.source.max()) <= max(ProposalSource):
            raise TraceFormatError("a source of proposals is unknown")

    @property
    def answer_tokens(self) -> int:
        return self.tokens.shape[0] - self.prompt_length

    @property
    def drafted(self) -> Tensor:
        """Whether the draft proposed the round's nodes ``[R]`` bool."""
        return self.source == ProposalSource.DRAFT

    @property
    def held_out(self) -> bool:
        return is_held_out(self.request)

    @property
    def measurable(self) -> bool:
        """Whether a candidate may be measured on the prompt: held out, not empty and not too long."""
        return self.held_out and 0 < self.prompt_length <= MAX_MEASURED_PROMPT_TOKENS


_BY_ROUNDS: Final = ("root", "node_count", "accepted", "version", "source")
_BY_NODES: Final = ("node_token", "node_parent", "node_accepted", "top_ids", "top_logprobs", "uncaptured_mass")
_CONCATENATED: Final = ("tokens", "hidden", *_BY_ROUNDS, *_BY_NODES)
_MATRICES: Final = ("hidden", "top_ids", "top_logprobs")
_FLOAT_TENSORS: Final = ("hidden", "top_logprobs", "uncaptured_mass")
_INTEGERS: Final = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_FLOATS: Final = (torch.float16, torch.bfloat16, torch.float32)
_BOOLS: Final = (torch.bool,)
_PACKED, _PACKED_SCALE = "hidden_float8", "hidden_scale"
"""Stand for ``hidden`` in a shard whose states are packed (:mod:`aurora_runtime.packed_states`)."""
MAX_TRACE_ROWS: Final = 1 << 24
"""Most tokens, rounds or nodes of one request."""
MAX_TOP_TOKENS: Final = 256
"""Most likely tokens per node, the most that a shard may hold."""


def shard_tensors(traces: Sequence[RequestTrace], state_type: StateType = StateType.BFLOAT16) -> dict[str, Tensor]:
    """Concatenate ``Q`` traces into a shard's tensors. ``index [Q, 7]`` int64 holds each request's numbers and lengths.

    Raises :class:`TraceFormatError` when there is no trace.
    """
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
    concatenated = {name: torch.cat([getattr(t, name) for t in traces]).contiguous() for name in _CONCATENATED}
    tags = {"tag": torch.tensor([t.tag for t in traces])} if any(t.tag for t in traces) else {}
    if state_type is StateType.FLOAT8:
        concatenated[_PACKED], concatenated[_PACKED_SCALE] = pack(concatenated.pop("hidden"))
    return {"index": index, **tags, **concatenated}


def shard_counts(traces: Sequence[RequestTrace]) -> dict[str, Any]:
    """The counts of a shard's manifest (:class:`~aurora_protocol.training_records.ShardManifest`)."""
    return {
        "requests": len(traces),
        "tokens": sum(t.hidden.shape[0] for t in traces),
        "answer_tokens": sum(t.answer_tokens for t in traces),
        "rounds": sum(t.root.shape[0] for t in traces),
        "proposed": sum(int((t.node_count[t.drafted] - 1).sum()) for t in traces),
        "accepted": sum(int(t.accepted[t.drafted].sum()) for t in traces),
    }


def empty_shard() -> bytes:
    """A shard of no requests: what is left when the traces of all its requests were erased."""
    of_kind = dict.fromkeys(_CONCATENATED, torch.int32)
    of_kind |= dict.fromkeys(_FLOAT_TENSORS, torch.float16) | {"node_accepted": torch.bool}
    shapes = {name: (0, 0) if name in _MATRICES else (0,) for name in _CONCATENATED}
    tensors = {name: torch.zeros(shapes[name], dtype=of_kind[name]) for name in _CONCATENATED}
    return save({"index": torch.zeros((0, INDEX_COLUMNS), dtype=torch.int64), **tensors})


def encode(traces: Sequence[RequestTrace], state_type: StateType = StateType.BFLOAT16) -> bytes:
    """A shard as one safetensors object."""
    return save(shard_tensors(traces, state_type))


def state_type_of(data: bytes) -> StateType:
    """How the shard ``data``, which :func:`decode` can read, stores its hidden states."""
    return StateType.FLOAT8 if _PACKED in load(data) else StateType.BFLOAT16


def decode(data: bytes) -> Iterator[RequestTrace]:
    """The traces of a shard, in order. Their tensors are views of the shard's.

    Raises :class:`TraceFormatError`, whatever the bytes are. A later trace of a shard may be wrong although an earlier
    one was right.
    """
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        raise TraceFormatError("not a safetensors file that this reader knows") from error
    if _PACKED in tensors and "hidden" not in tensors:
        tensors["hidden"] = _unpacked(tensors.pop(_PACKED), tensors.pop(_PACKED_SCALE, None))
    if missing := {"index", *_CONCATENATED} - tensors.keys():
        raise TraceFormatError(f"tensors missing: {', '.join(sorted(missing))}")
    _require_formats(tensors)
    index = tensors["index"]
    _require_index(index, tensors)
    tags = _tags(tensors.get("tag"), index.shape[0])
    first = dict.fromkeys(_CONCATENATED, 0)
    for tag, row in zip(tags, index.tolist(), strict=True):
        request, prompt_length, hidden_start, n_tokens, n_hidden, n_rounds, n_nodes = row
        lengths = _lengths(n_tokens, n_hidden, n_rounds, n_nodes)
        parts = {name: tensors[name][first[name] : first[name] + length] for name, length in lengths.items()}
        yield RequestTrace(request=request, prompt_length=prompt_length, hidden_start=hidden_start, tag=tag, **parts)
        for name, length in lengths.items():
            first[name] += length


def _unpacked(codes: Tensor, scale: Tensor | None) -> Tensor:
    """The hidden states. Raises :class:`TraceFormatError` when their scales are missing or are not theirs."""
    if scale is None or scale.dtype != SCALE_TYPE or codes.dtype != PACKED_TYPE or codes.dim() != 2:
        raise TraceFormatError("the packed hidden states have another type or no scales")
    if scale.shape != codes.shape[:1]:
        raise TraceFormatError("the packed hidden states have another number of rows than of scales")
    return unpack(codes, scale)


def _tags(tensor: Tensor | None, requests: int) -> list[int]:
    """The number of each request's tag. Raises :class:`TraceFormatError` when they do not belong to the requests."""
    if tensor is None:
        return [NO_TAG] * requests
    if tensor.dtype != torch.int64 or tensor.shape != (requests,):
        raise TraceFormatError("the tags have another type or other dimensions")
    tags: list[int] = tensor.tolist()
    return tags


def _lengths(tokens: int, hidden: int, rounds: int, nodes: int) -> dict[str, int]:
    """How many rows of each concatenated tensor one trace has."""
    return {
        "tokens": tokens,
        "hidden": hidden,
        **dict.fromkeys(_BY_ROUNDS, rounds),
        **dict.fromkeys(_BY_NODES, nodes),
    }


def _require_formats(tensors: Mapping[str, Tensor]) -> None:
    """Raise :class:`TraceFormatError` unless the tensors have the dimensions and the kinds of numbers of a shard's."""
    for name in _CONCATENATED:
        tensor = tensors[name]
        kind = _FLOATS if name in _FLOAT_TENSORS else _BOOLS if name == "node_accepted" else _INTEGERS
        if tensor.dim() != (2 if name in _MATRICES else 1) or tensor.dtype not in kind:
            raise TraceFormatError(f"{name} has another type or other dimensions")
    columns = tensors["top_ids"].shape[1]
    if columns != tensors["top_logprobs"].shape[1] or columns > MAX_TOP_TOKENS:
        raise TraceFormatError("the target's likely tokens have too many columns, or differ in their columns")


def _require_index(index: Tensor, tensors: Mapping[str, Tensor]) -> None:
    """Raise :class:`TraceFormatError` unless the requests of ``index`` share out the rows of the tensors."""
    if index.dtype != torch.int64 or index.dim() != 2 or index.shape[1] != INDEX_COLUMNS:
        raise TraceFormatError("the index has another type or other columns")
    if index.numel() and (int(index.min()) < 0 or int(index[:, 1:].max()) > MAX_TRACE_ROWS):
        raise TraceFormatError("the index names impossible lengths")
    if bool((index[:, 1] > index[:, 3]).any()):
        raise TraceFormatError("a prompt is longer than its request")
    expected = _lengths(*index[:, 3:].sum(dim=0).tolist())
    for name, rows in expected.items():
        if tensors[name].shape[0] != rows:
            raise TraceFormatError(f"{name} has {tensors[name].shape[0]} rows, and the index names {rows}")
