"""Reads shards and splits their requests into training and held-out examples.

Invariants: a damaged shard is counted, logged and skipped, because another attempt would read the same bytes. A shard
that killed the trainer twice is skipped too, and so is one that the store refuses while it gives others. Of a shard
that can be read, a request that cannot be used costs only itself. No held-out request reaches the training side.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from safetensors import SafetensorError

from aurora_protocol.errors import InvalidRecord
from aurora_runtime.errors import ShardRefused, TraceFormatError
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.traces import RequestTrace, decode
from aurora_runtime.training.data.examples import Example, examples_of
from aurora_runtime.training.data.patient_shard_reads import PatientShardReads
from aurora_runtime.training.data.prefetch import ShardPrefetcher
from aurora_runtime.training.data.prefix_bank import PrefixBank
from aurora_runtime.training.data.shard_deaths import ShardDeaths
from aurora_runtime.training.retry import Retrier
from aurora_runtime.training.settings import DEFAULT_POLICY, TrainingPolicy
from aurora_store.errors import DigestMismatch, ObjectMissing

log = logging.getLogger(__name__)
_DAMAGE_ERRORS: Final = (
    DigestMismatch,
    ObjectMissing,
    InvalidRecord,
    TraceFormatError,
    SafetensorError,
    ValueError,
    IndexError,
    RuntimeError,
)
"""Errors of a shard whose data or manifest is missing or wrong. The last three occur when tensors do not fit."""


class HeldOutRequest(NamedTuple):
    """A held-out request of a shard."""

    request: int  # the number of the trace
    examples: tuple[Example, ...]
    measurable: bool  # whether a candidate may be measured on its prompt


@dataclass(frozen=True)
class Shard:
    """A shard's examples on both sides of the split."""

    key: str
    train: tuple[Example, ...]
    held_out: tuple[HeldOutRequest, ...]


class ShardReader:
    """Reads shards of a target with ``vocab_size`` tokens and auxiliary states ``aux_width`` wide.

    Restores prefix states from earlier shards (:class:`PrefixBank`).
    """

    def __init__(
        self,
        registry: PodRegistry,
        vocab_size: int,
        aux_width: int,
        retrier: Retrier,
        *,
        policy: TrainingPolicy = DEFAULT_POLICY,
        deaths: ShardDeaths | None = None,
    ) -> None:
        """``deaths`` remembers what kills the trainer. None: nothing is remembered."""
        self._vocab_size, self._aux_width = vocab_size, aux_width
        self._prefixes = PrefixBank(policy.prefix_bank_bytes, policy.prefix_bank_traces)
        reads = PatientShardReads(registry, retrier)
        self._prefetcher = ShardPrefetcher(reads.read, policy.prefetched_shards, policy.prefetched_bytes)
        self.deaths = deaths or ShardDeaths()
        self.damaged = 0
        """Shards that were skipped, since the start."""

    def prefetch(self, keys: Sequence[str], size_of: Callable[[str], int] = lambda _: 0) -> None:
        """Begin to fetch the first of ``keys``, which are read next and in this order. ``size_of``: their bytes."""
        self._prefetcher.prefetch(() if self.deaths.suspects else keys, size_of)

    def read(self, key: str) -> Shard | None:
        """The shard's examples. None when the shard is damaged, refused or quarantined.

        Call :meth:`finish` when the work on the shard is done.
        """
        if key in self.deaths.quarantined:
            log.error("shard %s is quarantined and skipped", key)
            return None
        self.deaths.begin(key)
        try:
            return self._split(key, decode(self._prefetcher.get(key)))
        except (ShardRefused, *_DAMAGE_ERRORS) as error:
            self.finish()
            self.damaged += 1
            state = "cannot be read" if isinstance(error, ShardRefused) else "is damaged"
            log.error("shard %s %s and is skipped (%d so far): %s", key, state, self.damaged, error)  # noqa: TRY400
            return None

    def drop(self, shards: Collection[str]) -> None:
        """Forget the traces of ``shards``, which may not be kept."""
        self._prefixes.drop(shards)

    def finish(self) -> None:
        """Note that the work on the shard that was read last succeeded."""
        self.deaths.survived()

    def _split(self, key: str, traces: Iterable[RequestTrace]) -> Shard:
        train: list[Example] = []
        held_out: list[HeldOutRequest] = []
        used, refusals = 0, list[TraceFormatError]()
        for trace in traces:
            try:
                examples = self._examples(trace, key)
            except TraceFormatError as error:
                refusals.append(error)
                continue
            used += 1
            if trace.held_out:
                held_out.append(HeldOutRequest(trace.request, tuple(examples), trace.measurable))
            else:
                train += examples
        if refusals and not used:
            raise refusals[0]
        if refusals:
            log.warning("%d requests of shard %s are skipped: %s", len(refusals), key, refusals[0])
        return Shard(key, tuple(train), tuple(held_out))

    def _examples(self, trace: RequestTrace, key: str) -> list[Example]:
        width = trace.hidden.shape[1]
        if width != self._aux_width:
            raise TraceFormatError(f"hidden states are {width} wide, expected {self._aux_width}")
        if not bool(trace.hidden.isfinite().all()):
            raise TraceFormatError("hidden states are not finite")
        return examples_of(trace, self._vocab_size, self._prefixes.complete(trace, key))
