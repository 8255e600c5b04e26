"""What a measurement reads from the store: the drafts, the prompts, and the text with which lookup begins.

A draft is measured only if an inference pod would load it, because both make the same check. A candidate is measured on
held-out prompts, on which no draft was trained. Lookup begins with conversations that are not held out, as in a pod.

Invariants: only held-out requests are measured on, those of the newest shards first. The same shards give the same
prompts in the same order. One shard that is damaged, or that the store alone refuses, stops no measurement. Prompts are
token ids, and leave this process only as requests to the engine under test.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final, Self

from aurora_protocol.draft_records import Lineage, Registration
from aurora_protocol.errors import InvalidRecord
from aurora_protocol.tag_hash import NO_TAG
from aurora_runtime.engine.draft_file_check import WEIGHTS, check_draft, max_weights_bytes
from aurora_runtime.errors import DraftRefused, MeasurementError, TraceFormatError
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.traces import RequestTrace, decode
from aurora_store.errors import DigestMismatch, ObjectMissing, ObjectRefused
from aurora_store.objects import sha256_file

log = logging.getLogger(__name__)

MAX_SHARDS: Final = 2048
"""Bounds the calls to the store. With little traffic a shard holds one request, and few of them are held out."""
MAX_CONVERSATIONS: Final = 64
"""Recorded conversations with which lookup begins."""


@dataclass(frozen=True)
class FetchedDraft:
    """A downloaded version: its folder, in SGLang's format, and its number."""

    folder: Path
    version: int

    @property
    def weights(self) -> Path:
        """The file with the weights."""
        return self.folder / WEIGHTS

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the weights' file."""
        return sha256_file(self.weights)


def fetch_draft(registry: PodRegistry, registration: Registration, lineage: Lineage, folder: Path) -> FetchedDraft:
    """Download a version into ``folder`` and verify its digests.

    Raises :class:`DraftRefused` when a pod would not load the draft: missing or damaged files, another lineage, other
    tensors, another vocabulary map, another configuration, or values that are not finite.
    """
    try:
        manifest = registry.fetch_checkpoint(registration, folder, max_weights_bytes=max_weights_bytes(lineage))
    except (ObjectMissing, DigestMismatch, InvalidRecord) as error:
        raise DraftRefused(f"the draft's files are not what its manifest says: {error}") from error
    if manifest.lineage != lineage.number:
        raise DraftRefused(f"the draft is of lineage {manifest.lineage}, not of {lineage.number}")
    check_draft(folder, lineage)
    return FetchedDraft(folder, registration.version)


@dataclass(frozen=True)
class Prompt:
    """The prompt of one held-out request: the number that decided the split, and the token ids that the engine saw."""

    request: int
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Traffic:
    """Recorded requests, newest first: distinct held-out prompts, one of each conversation, and other conversations."""

    prompts: tuple[Prompt, ...]
    conversations: tuple[tuple[int, ...], ...] = ()
    """Prompts with their answers, none of them held out or with a tag."""

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(len(prompt.tokens) for prompt in self.prompts)

    def within(self, most_tokens: int, *, needed: int) -> Self:
        """Leave out longer prompts, which not every arm answers, and cut longer conversations.

        Raises :class:`MeasurementError` when fewer than ``needed`` prompts are left.
        """
        prompts = tuple(prompt for prompt in self.prompts if len(prompt.tokens) <= most_tokens)
        if len(prompts) < needed:
            raise MeasurementError(
                f"{len(prompts)} of {len(self.prompts)} held-out prompts have at most {most_tokens} tokens, which"
                f" fit into the context length with an answer and the draft's tokens; {needed} are needed:"
                " lower validation.maxNewTokens, or send requests with shorter prompts too"
            )
        longest = max(len(prompt.tokens) for prompt in prompts)
        return replace(self, prompts=prompts, conversations=tuple(text[:longest] for text in self.conversations))


def read_traffic(registry: PodRegistry, lineage: int, *, vocab_size: int, wanted: int, needed: int) -> Traffic:
    """Recorded traffic with up to ``wanted`` prompts.

    A shard that is damaged, or that the store refuses, is logged and skipped.

    Args:
        vocab_size: size of the target's vocabulary. A token beyond it could end an engine.

    Raises :class:`MeasurementError` when there are fewer than ``needed`` prompts. A small sample would pass or reject
    by chance, so the operator retries when there is more traffic. Raises :class:`StoreError` when the store fails.
    """
    keys = registry.newest_shards(lineage, MAX_SHARDS)
    prompts: dict[int, Prompt] = {}
    conversations: list[tuple[int, ...]] = []
    shards_read, unreadable = 0, list[Exception]()
    for key in keys:
        if len(prompts) >= wanted:
            break
        try:
            traces = list(decode(registry.shard(key)[1]))
            found = [Prompt(t.request, _tokens(t, t.prompt_length, vocab_size)) for t in traces if t.measurable]
            others = [_tokens(t, len(t.tokens), vocab_size) for t in traces if not t.held_out and t.tag == NO_TAG]
        except ObjectMissing:
            continue  # deleted since the listing, because the trainer bounds the store
        except (ObjectRefused, DigestMismatch, InvalidRecord, TraceFormatError) as error:
            unreadable.append(error)
            log.warning("shard %s cannot be read and is skipped: %s", key, error)
            continue
        for prompt in found:
            if len(prompts) < wanted:
                prompts.setdefault(prompt.request, prompt)
        conversations += others[: MAX_CONVERSATIONS - len(conversations)]
        shards_read += 1
    log.info("prompts: %d distinct held-out prompts in %d of %d shards", len(prompts), shards_read, len(keys))
    if len(prompts) < needed:
        notes = f". {len(unreadable)} more shards cannot be read: {unreadable[0]}" if unreadable else ""
        raise MeasurementError(
            f"{len(prompts)} distinct held-out prompts, one of each conversation, in the newest {shards_read} shards; "
            f"{needed} are needed: wait for traffic{notes}"
        )
    return Traffic(tuple(prompts.values()), tuple(conversations))


def _tokens(trace: RequestTrace, length: int, vocab_size: int) -> tuple[int, ...]:
    """The first ``length`` tokens of ``trace``. Raises :class:`TraceFormatError`: of a bad shard nothing is used."""
    tokens = tuple(trace.tokens[:length].tolist())
    if not 0 <= min(tokens, default=0) <= max(tokens, default=0) < vocab_size:
        raise TraceFormatError("a request has tokens outside the target's vocabulary")
    return tokens
