"""How long a prompt may be so that every arm answers it within the engine's context length. Pure.

SGLang refuses a request whose prompt, longest answer and reserved tokens exceed the context length
(sglang/srt/managers/tokenizer_manager.py:1335-1377). It reserves tokens only where a draft speculates. A longer prompt
would therefore be answered by off and fail on both drafts, and the failures would reject the candidate.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Final

from aurora_api.v1alpha1.draft import DraftSpec
from aurora_protocol.draft_records import DraftSizes
from aurora_runtime.validation.engines.warm_up import ENGINE_TOKENS

DRAFT_ROOM_TOKENS: Final = 64
"""Room for the draft tokens of a request. No round of a chain, of a lookup or of SGLang's verification is wider."""
_MULTIPLES: Final = {None: 1, "k": 10**3, "M": 10**6, "Ki": 1 << 10, "Mi": 1 << 20}
"""The suffixes of a length that SGLang reads (sglang/srt/utils/common.py:3394)."""


def longest_prompt(sizes: DraftSizes, draft: DraftSpec, max_new_tokens: int, extra_args: Sequence[str]) -> int | None:
    """Most tokens of a prompt that every arm answers. None: the context length is not known.

    Args:
        sizes: of the lineage's drafts.
        max_new_tokens: the longest answer of a measurement.
        extra_args: further arguments of the engine.
    """
    # A warm-up may answer more than a measurement does.
    reserved = max(DRAFT_ROOM_TOKENS, draft.steps)
    length = context_length(sizes, extra_args)
    return None if length is None else max(0, length - max(max_new_tokens, ENGINE_TOKENS) - reserved)


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
