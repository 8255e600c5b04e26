"""SGLang's custom weight loader: the draft's weights from a file in the pod, its path sent as one small tensor.

Imported by SGLang alone, inside its scheduler: it needs torch. Called as ``fn(model, named_tensors)``
(sglang/srt/model_executor/model_runner_components/weight_updater.py:374). Invariant: never raises, because SGLang does
not catch here and would end. When the file cannot be loaded the old weights stay, and the checksum that the caller
compares tells. Names, shapes, dtypes, digest and map were checked before (:mod:`aurora_runtime.engine.draft_check`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from aurora_runtime.engine import vocabulary_plugin
from aurora_runtime.engine.draft_check import INVERSE_MAP, VOCABULARY_MAP
from aurora_runtime.engine.path_payload import PATH_TENSOR

log = logging.getLogger(__name__)


def load_draft(model: Any, named_tensors: Sequence[tuple[str, Tensor]]) -> None:
    """Load the safetensors file whose path the tensor ``aurora.path`` [bytes] uint8 spells into ``model``.

    Left out are the embedding, which in SGLang is the target's own parameter (sglang/srt/models/llama.py:910), and the
    inverse map, for which it has no use (sglang/srt/models/llama_eagle3.py:355).
    """
    try:
        path = bytes(dict(named_tensors)[PATH_TENSOR].tolist()).decode()
        tensors = load_file(path)
        offsets = tensors.pop(VOCABULARY_MAP)
        tensors.pop(INVERSE_MAP, None)
        vocabulary_plugin.replace(model, offsets)  # first: it may refuse
        model.load_weights([(n, t) for n, t in tensors.items() if "embed_tokens" not in n])
    except Exception:  # whatever it is: past this frame it would end the engine
        log.exception("aurora: the draft was not loaded, the old weights stay")
