"""SGLang's custom weight loader: reads the draft's weights from a file in the pod, whose path arrives as a tensor.

Only SGLang imports this module, inside its scheduler, because the module needs torch. SGLang calls
``fn(model, named_tensors)`` (sglang/srt/model_executor/model_runner_components/weight_updater.py:374), once on each
tensor-parallel rank. Each rank decides for its own shard, and the agent compares what all ranks report.

Invariants:

- Every tensor is checked against its place before the first write, so a file that does not fit changes nothing. When a
  write fails all the same, the engine reports a draft in parts, and the agent loads the former file again.
- The digest of the file is set last (:mod:`aurora_runtime.engine.draft_load.loaded_digest`). The digest is the agent's,
  which has hashed the file just before. Hashing here would lengthen the pause.
- The loader never raises, because SGLang catches no error here and would end.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from aurora_runtime.engine import vocabulary_plugin
from aurora_runtime.engine.draft_file_check import INVERSE_MAP, VOCABULARY_MAP
from aurora_runtime.engine.draft_load import loaded_digest
from aurora_runtime.engine.draft_load.tensor_destinations import EMBEDDING, check_destinations
from aurora_runtime.engine.path_payload import DIGEST_TENSOR, IN_PARTS, PATH_TENSOR
from aurora_runtime.errors import RuntimeFault

log = logging.getLogger(__name__)


def load_draft(model: Any, named_tensors: Sequence[tuple[str, Tensor]]) -> None:
    """Load into ``model`` a safetensors file, and report its digest from then on.

    Args:
        named_tensors: ``aurora.path`` ``[bytes]`` uint8, the file's path, and ``aurora.digest`` ``[32]`` uint8.
    """
    try:
        request = dict(named_tensors)
        path = bytes(request[PATH_TENSOR].tolist()).decode()
        _load(model, load_file(path), bytes(request[DIGEST_TENSOR].tolist()).hex())
    except Exception as error:  # any error that left this frame would end the engine
        log.exception("aurora: the draft was not loaded")
        reason = error if isinstance(error, RuntimeFault) else f"{type(error).__name__}: {error}"
        loaded_digest.note_failure(model, f"the draft was not loaded: {reason}")


def _load(model: Any, tensors: dict[str, Tensor], digest: str) -> None:
    """Check all ``tensors``, then write them.

    Two tensors are left out: the embedding, which in SGLang is the target's own parameter
    (sglang/srt/models/llama.py:910), and the inverse map, which SGLang does not use
    (sglang/srt/models/llama_eagle3.py:355).
    """
    offsets = tensors.pop(VOCABULARY_MAP)
    tensors.pop(INVERSE_MAP, None)
    weights = {name: tensor for name, tensor in tensors.items() if EMBEDDING not in name}
    check_destinations(model, weights)
    vocabulary_plugin.check_map(model, offsets)
    loaded_digest.write_digest(model, IN_PARTS)
    model.load_weights(list(weights.items()))
    vocabulary_plugin.replace_map(model, offsets)
    loaded_digest.write_digest(model, digest)
