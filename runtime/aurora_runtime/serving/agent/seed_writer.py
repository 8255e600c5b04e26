"""Writes the seed of the engine's lookup, for each start of the engine: answers from the newest shards of the store.

The agent does this beside the engine's start. The engine reads the file once its weights are loaded, and starts without
a seed if the file is not there. Only the token ids of a shard are read, by ranges: its hidden states are hundreds of
times larger.

Invariants: a seed holds only answers that the store had when the engine started, and is removed once the engine is
ready. Otherwise a later engine would look up answers that the store deleted long ago. Answers of held-out and of tagged
requests are left out. The bytes that are read are bounded, whatever the store holds. A store that fails
costs the seed, and a shard that cannot be read costs its own answers. Neither costs the pod.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aurora_api.v1alpha1.draft import DraftSpec, LookupScope
from aurora_protocol.errors import InvalidRecord
from aurora_protocol.tag_hash import NO_TAG
from aurora_runtime.errors import DraftRefused
from aurora_runtime.held_out_split import is_held_out
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.serving.agent.pod_context import PodContext
from aurora_runtime.serving.pod_files import PodFolder, write_atomically
from aurora_runtime.serving.speculation.lookup_seed import MAX_SEED_TOKENS, encode_seed
from aurora_runtime.shard_header import Read, ShardHeader
from aurora_store.errors import ObjectMissing, ObjectRefused, StoreError

log = logging.getLogger(__name__)

POLL_SECONDS: Final = 1.0
MAX_SHARDS: Final = 256
MAX_SECONDS: Final = 60.0
"""Time after which no further shard is read."""
CONTEXT_TOKENS: Final = 16
"""Tokens of the prompt that are kept before an answer, so that its first tokens can be found too."""
MAX_ANSWER_TOKENS: Final = 1 << 14
"""Tokens of one answer beyond this many are left out, so that one answer does not fill the seed."""


def seeding_thread(pod: PodContext, registry: PodRegistry, draft: DraftSpec) -> threading.Thread | None:
    """A thread, not started, that keeps the pod's seed (:class:`SeedKeeper`). None where no lookup would use the seed.

    The thread is a daemon, so that a store that hangs does not hold the agent's exit.
    """
    if not draft.adaptive or draft.lookup is not LookupScope.SPECULATOR:
        return None
    keeper = SeedKeeper(pod, registry)

    def run() -> None:
        while True:
            keeper.advance()
            time.sleep(POLL_SECONDS)

    return threading.Thread(target=run, name="lookup-seed", daemon=True)


class SeedKeeper:
    """Writes the seed for an engine that starts, and removes the seed once the engine is ready."""

    def __init__(self, pod: PodContext, registry: PodRegistry) -> None:
        self._pod, self._registry = pod, registry
        self._seeded_boot: str | None = None
        """The start for which a seed was written. Empty: for the next start. None: for no start yet."""

    def advance(self) -> None:
        """Compare the seed with the engine's state. The agent calls this often."""
        try:
            engine = self._pod.folder.read_engine_state()
        except (InvalidRecord, OSError) as error:
            log.warning("engine.json is not readable: %s", error)
            return
        if engine is not None and engine.ready:
            self._seeded_boot = engine.boot
            remove_seed(self._pod.folder)
            return
        boot = engine.boot if engine is not None else ""
        if self._seeded_boot is None or self._seeded_boot not in ("", boot):
            self._write()
        self._seeded_boot = boot

    def _write(self) -> None:
        try:
            lineage = self._pod.drafts.lineage()
        except (DraftRefused, InvalidRecord, StoreError, OSError) as error:
            log.warning("lookup gets no seed: %s", error)
            remove_seed(self._pod.folder)
            return
        write_seed(self._pod.folder, self._registry, lineage.number, lineage.target.vocab_size)


def write_seed(folder: PodFolder, registry: PodRegistry, lineage: int, vocabulary_size: int) -> int:
    """Write the seed file and return the number of its answers, 0 when the store has none or fails.

    With 0 answers there is no file, not even an older one.
    """
    try:
        answers = recent_answers(registry, lineage, vocabulary_size)
        if answers:
            write_atomically(folder.lookup_seed, encode_seed(answers))
    except (StoreError, OSError) as error:
        log.warning("lookup gets no seed: %s", error)
        answers = []
    if not answers:
        remove_seed(folder)
    log.info("lookup gets a seed of %d answers", len(answers))
    return len(answers)


def remove_seed(folder: PodFolder) -> None:
    """Remove the seed file, if there is one."""
    try:
        folder.lookup_seed.unlink(missing_ok=True)
    except OSError as error:
        log.warning("the seed of lookup was not removed: %s", error)


def recent_answers(registry: PodRegistry, lineage: int, vocabulary_size: int) -> list[NDArray[np.int32]]:
    """Distinct answers of the newest shards, each after the end of its prompt, the latest last.

    Raises :class:`StoreError`.
    """
    deadline = time.monotonic() + MAX_SECONDS
    newest_first: dict[bytes, NDArray[np.int32]] = {}
    tokens = 0
    for key in registry.newest_shards(lineage, MAX_SHARDS):
        if tokens >= MAX_SEED_TOKENS or time.monotonic() > deadline:
            break
        for answer in reversed(_answers(registry, key)):
            known = answer.tobytes() in newest_first
            if known or tokens + answer.size > MAX_SEED_TOKENS or not _within(answer, vocabulary_size):
                continue
            newest_first[answer.tobytes()] = answer
            tokens += answer.size
    return list(newest_first.values())[::-1]


def _within(answer: NDArray[np.int32], vocabulary_size: int) -> bool:
    return bool(((answer >= 0) & (answer < vocabulary_size)).all())


def _answers(registry: PodRegistry, key: str) -> list[NDArray[np.int32]]:
    try:
        return list(answers_of_shard(lambda first, size: registry.shard_range(key, first, size)))
    except ObjectMissing:
        return []  # deleted since the listing, because the trainer bounds the store
    except ObjectRefused as error:  # the store may give other shards: a lifecycle rule may have archived this one
        log.warning("shard %s cannot be read, and gives lookup nothing: %s", key, error)
        return []
    except (ValueError, RecursionError) as error:  # RecursionError: a header of brackets
        log.warning("shard %s gives lookup nothing: %s", key, error)
        return []


def answers_of_shard(read: Read) -> Iterator[NDArray[np.int32]]:
    """The answers of a shard to prompts that are not held out, of requests without a tag.

    Raises ValueError when the bytes are no shard.
    """
    header = ShardHeader(read)
    rows, tags = header.index(), header.tags()
    tokens = np.frombuffer(header.tensor("tokens", "I32", 4), dtype="<i4")
    start = 0
    for (request, prompt_length, _, length, *_), tag in zip(rows, tags, strict=True):
        if not 0 <= prompt_length <= length <= tokens.size - start:
            raise ValueError("a request has other tokens than its shard")
        if length > prompt_length and tag == NO_TAG and not is_held_out(request):
            first = start + max(0, prompt_length - CONTEXT_TOKENS)
            yield tokens[first : min(start + length, start + prompt_length + MAX_ANSWER_TOKENS)]
        start += length
