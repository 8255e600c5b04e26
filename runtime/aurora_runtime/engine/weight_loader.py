"""SGLang's custom weight loader: reads the draft's weights from a file in the pod, whose path arrives as a tensor.

Only SGLang imports this module, inside its scheduler, because the module needs torch. SGLang calls
``fn(model, named_tensors)`` (sglang/srt/model_executor/model_runner_components/weight_updater.py:374).

Invariant: the loader never raises, because SGLang catches no error here and would end. When the file cannot be loaded,
the old weights stay, and the caller sees the failure by the checksum. Before the load the caller checks names, shapes,
dtypes, digest and map (:mod:`aurora_runtime.engine.draft_file_check`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from aurora_runtime.engine import vocabulary_plugin
from aurora_runtime.engine.draft_file_check import INVERSE_MAP, VOCABULARY_MAP
from aurora_runtime.engine.path_payload import PATH_TENSOR

log = logging.getLogger(__name__)


def load_draft(model: Any, named_tensors: Sequence[tuple[str, Tensor]]) -> None:
    """Load into ``model`` the safetensors file whose path is in the tensor ``aurora.path`` ``[bytes]`` uint8.

    Two tensors are left out: the embedding, which in SGLang is the target's own parameter
    (sglang/srt/models/llama.py:910), and the inverse map, which SGLang does not use
    (sglang/srt/models/llama_eagle3.py:355).
    """
    try:
        path = bytes(dict(named_tensors)[PATH_TENSOR].tolist()).decode()
        tensors = load_file(path)
        offsets = tensors.pop(VOCABULARY_MAP)
        tensors.pop(INVERSE_MAP, None)
        vocabulary_plugin.replace_map(model, offsets)  # first, because it may refuse
        model.load_weights([(n, t) for n, t in tensors.items() if "embed_tokens" not in n])
    except Exception:  # any error that left this frame would end the engine
        log.exception("aurora: the draft was not loaded; the engine keeps the old weights")
