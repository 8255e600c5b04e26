"""Chooses what of the recent traffic a candidate is measured on, and with which text lookup begins.

A candidate is measured on held-out prompts, on which no draft was trained. Lookup begins with conversations that are
not held out, as in a pod.

Invariants: only held-out requests are measured on, those of the newest shards first. The same shards give the same
prompts in the same order. Only prompts are chosen that fit into the engine's context length on every arm. One shard
that is damaged, or that the store alone refuses, stops no measurement. Prompts are token ids, and leave this process
only as requests to the engine under test.
"""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Final

from aurora_api.v1alpha1.draft import DraftSpec
from aurora_protocol.draft_records import DraftSizes
from aurora_protocol.errors import InvalidRecord, ProtocolError
from aurora_protocol.tag_hash import NO_TAG
from aurora_runtime.errors import MeasurementError, TraceFormatError
from aurora_runtime.held_out_split import MAX_MEASURED_PROMPT_TOKENS
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.traces import RequestTrace, decode
from aurora_runtime.validation.store_reads import repeat_while_away
from aurora_store.errors import DigestMismatch, ObjectMissing, ObjectRefused, StoreError

log = logging.getLogger(__name__)

MAX_SHARDS: Final = 2048
"""Bounds the calls to the store. With little traffic a shard holds one request, and few of them are held out."""
FEW_SHARDS: Final = 256
"""Bound where a lent replica waits for the prompts, because its first lease ends after 300 s."""
LARGE_DOWNLOAD_BYTES: Final = 4 << 30
"""The search ends with this many bytes of at least :data:`FEW_SHARDS` shards: those of large models are large."""
MAX_CONVERSATIONS: Final = 64
"""Recorded conversations with which lookup begins."""
CONVERSATION_SHARDS: Final = 16
"""Bounds the shards that are read for them."""
DRAFT_ROOM_TOKENS: Final = 64
"""Room for the draft tokens of a request. No round of a chain, of a lookup or of SGLang's verification is wider."""
_MULTIPLES: Final = {None: 1, "k": 10**3, "M": 10**6, "Ki": 1 << 10, "Mi": 1 << 20}
"""The suffixes of a length that SGLang reads (sglang/srt/utils/common.py:3394)."""


@dataclass(frozen=True)
class Prompt:
    """The prompt of one held-out request: the number that decided the split, and the token ids that the engine saw."""

    request: int
    tokens: tuple[int, ...]


def held_out_prompts(
    registry: PodRegistry,
    lineage: int,
    *,
    vocab_size: int,
    wanted: int,
    needed: int,
    longest: int | None = None,
    max_shards: int = MAX_SHARDS,
) -> tuple[Prompt, ...]:
    """Up to ``wanted`` distinct prompts, one of each conversation, newest shards first.

    A shard that is damaged, or that the store refuses, is logged and skipped.

    Args:
        vocab_size: size of the target's vocabulary. A token beyond it could end an engine.
        longest: most tokens of a prompt that every arm answers (:func:`longest_prompt`). None: not known.
        max_shards: how many shards are read at most.

    Raises :class:`MeasurementError` when there are fewer than ``needed``. A small sample would pass or reject by
    chance, so the operator retries when there is more traffic. Raises :class:`StoreError` when the store fails.
    """
    most_tokens = MAX_MEASURED_PROMPT_TOKENS if longest is None else min(longest, MAX_MEASURED_PROMPT_TOKENS)
    keys = repeat_while_away("listing shards", lambda: registry.newest_shards(lineage, max_shards))
    prompts: dict[int, Prompt] = {}
    shards_read = bytes_read = too_long = 0
    unreadable: list[Exception] = []
    for key in keys:
        if len(prompts) >= wanted or (shards_read >= FEW_SHARDS and bytes_read >= LARGE_DOWNLOAD_BYTES):
            break
        try:
            data = repeat_while_away(f"reading {key}", partial(registry.shard, key))[1]
            bytes_read += len(data)
            traces = [trace for trace in decode(data) if trace.held_out]
            found = _prompts(traces, vocab_size, most_tokens)
        except ObjectMissing:
            continue  # deleted since the listing, because the trainer bounds the store
        except (ObjectRefused, DigestMismatch, InvalidRecord, TraceFormatError) as error:
            unreadable.append(error)
            log.warning("shard %s cannot be read and is skipped: %s", key, error)
            continue
        for prompt in found:
            if len(prompts) < wanted:
                prompts.setdefault(prompt.request, prompt)
        too_long += sum(trace.prompt_length > most_tokens for trace in traces)
        shards_read += 1
    log.info("prompts: %d distinct held-out prompts in %d of %d shards", len(prompts), shards_read, len(keys))
    if len(prompts) < needed:
        raise MeasurementError(
            f"{len(prompts)} distinct held-out prompts, one of each conversation, in the newest {shards_read} shards; "
            f"{needed} are needed: wait for traffic{_notes(too_long, most_tokens, unreadable)}"
        )
    return tuple(prompts.values())


def _notes(too_long: int, most_tokens: int, unreadable: Sequence[Exception]) -> str:
    """What an error says besides: why there are not more prompts, and what to do."""
    notes = ""
    if too_long:
        notes += f". {too_long} more held-out prompts are longer than {most_tokens} tokens, and "
        if most_tokens < MAX_MEASURED_PROMPT_TOKENS:
            notes += (
                "do not fit into the engine's context length together with an answer of validation.maxNewTokens and"
                " the draft's tokens: lower validation.maxNewTokens, or send requests with shorter prompts too"
            )
        else:
            notes += "no measurement uses these: send requests with shorter prompts too"
    if unreadable:
        notes += f". {len(unreadable)} more shards cannot be read: {unreadable[0]}"
    return notes


def _prompts(traces: Iterable[RequestTrace], vocab_size: int, most_tokens: int) -> list[Prompt]:
    """The prompts of ``traces`` that can be measured with and have at most ``most_tokens``, in their order.

    Raises :class:`TraceFormatError`. All of a shard's prompts are used, or none.
    """
    found = []
    for trace in traces:
        if trace.measurable and trace.prompt_length <= most_tokens:
            tokens = tuple(trace.tokens[: trace.prompt_length].tolist())
            if not 0 <= min(tokens) <= max(tokens) < vocab_size:
                raise TraceFormatError("a prompt has tokens outside the target's vocabulary")
            found.append(Prompt(trace.request, tokens))
    return found


def recorded_conversations(registry: PodRegistry, lineage: int, longest: int) -> tuple[tuple[int, ...], ...]:
    """Prompts with their answers that are not held out, newest shards first, each cut after ``longest`` tokens.

    A tagged request is left out, because lookup shares it with no other one. The conversations only make a measurement
    more like the service. So a store that fails ends the search, and lookup begins with what was found.
    """
    found: list[tuple[int, ...]] = []
    try:
        for key in registry.newest_shards(lineage, CONVERSATION_SHARDS):
            for trace in decode(registry.shard(key)[1]):
                if not trace.held_out and trace.tag == NO_TAG and len(found) < MAX_CONVERSATIONS:
                    found.append(tuple(trace.tokens[:longest].tolist()))
            if len(found) == MAX_CONVERSATIONS:
                break
    except (StoreError, ProtocolError, TraceFormatError) as error:
        log.warning("lookup begins with %d recorded conversations, because reading failed: %s", len(found), error)
    return tuple(found)


def longest_prompt(sizes: DraftSizes, draft: DraftSpec, max_new_tokens: int, extra_args: Sequence[str]) -> int | None:
    """Most tokens of a prompt that every arm answers. None: the context length is not known.

    SGLang refuses a request whose prompt, longest answer and reserved tokens exceed the context length
    (sglang/srt/managers/tokenizer_manager.py:1335-1377). It reserves tokens only where a draft speculates. A longer
    prompt would therefore be answered by an engine without a draft, and fail on one with a draft.

    Args:
        sizes: of the lineage's drafts.
        max_new_tokens: the longest answer of a measurement.
        extra_args: further arguments of the engine.
    """
    reserved = max(DRAFT_ROOM_TOKENS, draft.steps)
    length = context_length(sizes, extra_args)
    return None if length is None else max(0, length - max_new_tokens - reserved)


def context_length(sizes: DraftSizes, extra_args: Sequence[str]) -> int | None:
    """The engine's context length: that of ``--context-length``, or the longest sequence of the draft.

    The draft has the target's longest sequence. SGLang starts no engine whose context is longer than the draft's
    (sglang/srt/configs/model_config.py:1291), unless an environment variable allows that. None: an argument is
    unreadable, or changes the models' configurations.
    """
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("--context-length")
    parser.add_argument("--json-model-override-args")
    try:
        found, _ = parser.parse_known_args(list(extra_args))
    except argparse.ArgumentError:
        return None
    if found.context_length is not None:
        return _tokens(found.context_length)
    return _longest_sequence(sizes) if found.json_model_override_args is None else None


def _longest_sequence(sizes: DraftSizes) -> int:
    """The draft's longest sequence, as SGLang derives it (sglang/srt/utils/hf_transformers/common.py:677)."""
    scaling = sizes.rope_scaling
    if scaling is None or scaling.original_max_position_embeddings is not None:
        return sizes.max_positions
    return int(scaling.factor * sizes.max_positions)


def _tokens(text: str) -> int | None:
    """The value of ``--context-length`` in tokens. None when it is unreadable."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(Ki|Mi|k|M)?", text.strip(), re.ASCII)
    return int(Decimal(match[1]) * _MULTIPLES[match[2]]) if match else None
