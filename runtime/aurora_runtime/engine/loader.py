"""Loads a draft checkpoint inside SGLang's scheduler, as a ``--custom-weight-loader``.

SGLang calls it as ``fn(model, named_tensors)`` (srt/model_executor/model_runner_components/weight_updater.py:374) and
does not catch what it raises: an exception would take the server down. Invariant: it never raises; when a file cannot
be read the old weights stay, and the checksum, which the caller compares, tells the truth.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

log = logging.getLogger(__name__)

_FIXED = ("d2t", "t2d")
"""The vocabulary map is the lineage's: a running SGLang cannot change it (srt/speculative/eagle_worker_v2.py:367)."""


def load_draft(model: Any, named_tensors: Sequence[tuple[str, Any]]) -> None:
    """Load the safetensors file whose path is the UTF-8 text in the one uint8 tensor given.

    The embedding is left out: the draft's *is* the target's parameter (srt/models/llama.py:910).
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        path = bytes(named_tensors[0][1].cpu().tolist()).decode()
        tensors = load_file(path)
        model.load_weights([(n, t) for n, t in tensors.items() if n not in _FIXED and "embed_tokens" not in n])
    except (OSError, SafetensorError, RuntimeError, ValueError, KeyError, IndexError, AssertionError):
        log.exception("the draft could not be loaded")
