"""What is in shards, and on which side of the held-out split each request lies.

Invariants: a damaged shard is counted, logged and left out, because another look would find the same; no held-out
request reaches the training side.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from safetensors import SafetensorError

from aurora_protocol.errors import InvalidRecord
from aurora_runtime.errors import TraceFormatError
from aurora_runtime.traces import RequestTrace, decode
from aurora_runtime.training.data.examples import Example, examples_of
from aurora_runtime.training.data.prefetch import ShardPrefetcher
from aurora_runtime.training.data.prefix_bank import PrefixBank
from aurora_runtime.training.retry import Retrier
from aurora_store import Registry
from aurora_store.errors import DigestMismatch, ObjectMissing

log = logging.getLogger(__name__)
_DAMAGE: Final = (
    DigestMismatch,
    ObjectMissing,
    InvalidRecord,
    TraceFormatError,
    SafetensorError,
    ValueError,
    IndexError,
    RuntimeError,
)
"""What reading a shard raises when its bytes, or its record's, are wrong (the last three: tensors that do not fit)."""


@dataclass(frozen=True)
class Shard:
    """A shard's examples on both sides of the split."""

    key: str
    train: tuple[Example, ...]
    held_out: tuple[tuple[int, tuple[Example, ...]], ...]  # by request hash


class ShardReader:
    """Reads shards, and remembers prefixes across them."""

    def __init__(
        self,
        registry: Registry,
        vocab: int,
        aux_width: int,
        patience: Retrier,
        *,
        prompt_weight: float = 0.0,
    ) -> None:
        self._registry, self._vocab = registry, vocab
        self._aux_width, self._patience, self._prompt_weight = aux_width, patience, prompt_weight
        self._prefixes = PrefixBank()
        self._ahead = ShardPrefetcher(self._fetch)
        self.damaged = 0

    def _fetch(self, key: str) -> bytes:
        return self._patience.call(f"reading {key}", lambda: self._registry.shard(key))[1]

    def expect(self, keys: Sequence[str]) -> None:
        """``keys`` will be read next, in this order: the first of them are fetched meanwhile."""
        self._ahead.expect(keys)

    def read(self, key: str) -> Shard | None:
        """The shard's examples, or None when it is damaged."""
        try:
            return self._split(key, decode(self._ahead.take(key)))
        except _DAMAGE as error:
            self.damaged += 1
            log.error("shard %s is damaged and skipped (%d so far): %s", key, self.damaged, error)  # noqa: TRY400
            return None

    def _split(self, key: str, traces: Iterable[RequestTrace]) -> Shard:
        train: list[Example] = []
        held_out: list[tuple[int, tuple[Example, ...]]] = []
        for trace in traces:
            if trace.hidden.shape[1] != self._aux_width:
                raise TraceFormatError(f"hidden states are {trace.hidden.shape[1]} wide, expected {self._aux_width}")
            if not bool(trace.hidden.isfinite().all()):
                raise TraceFormatError("hidden states are not finite")
            whole = self._prefixes.complete(trace)
            weight = 0.0 if trace.held_out else self._prompt_weight
            examples = examples_of(whole, self._vocab, weight, trace.hidden_start - whole.hidden_start)
            if trace.held_out:
                held_out.append((trace.request, tuple(examples)))
            else:
                train += examples
        return Shard(key, tuple(train), tuple(held_out))
