"""SGLang's custom weight loader: reads the draft's weights from a file in the pod, whose path arrives as a tensor.

Only SGLang imports this module, inside its scheduler, because the module needs torch. SGLang calls
``fn(model, named_tensors)`` (sglang/srt/model_executor/model_runner_components/weight_updater.py:374), once on each
tensor-parallel rank. Each rank decides for its own shard, and the agent compares what all ranks report.

Invariants:

- When a write fails, the engine reports a draft in parts, and the agent loads the former file again. SGLang skips a
  tensor that has no place, and keeps a parameter that no tensor fills. So whoever sends a file has checked it against
  its lineage (``draft_file_check``), and the engine has started with a draft of the same sizes.
- The digest of the file is set last (``vocabulary_plugin``). The digest is the sender's, which verified the file.
  Hashing here would lengthen the pause.
- The loader never raises, because SGLang catches no error here and would end.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final

from safetensors.torch import load_file
from torch import Tensor

from aurora_runtime.engine import vocabulary_plugin
from aurora_runtime.engine.draft_file_check import INVERSE_MAP, VOCABULARY_MAP
from aurora_runtime.engine.draft_update import DIGEST_TENSOR, IN_PARTS, PATH_TENSOR
from aurora_runtime.errors import RuntimeFault

log = logging.getLogger(__name__)
EMBEDDING: Final = "embed_tokens"
"""Part of the name of the embedding, which in SGLang is the target's own parameter (sglang/srt/models/llama.py:910)."""


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
        vocabulary_plugin.note_failure(model, f"the draft was not loaded: {reason}")


def _load(model: Any, tensors: dict[str, Tensor], digest: str) -> None:
    """Check the map, then write all ``tensors``.

    Two are left out: the embedding, and the inverse map, which SGLang does not use
    (sglang/srt/models/llama_eagle3.py:355).
    """
    offsets = tensors.pop(VOCABULARY_MAP)
    tensors.pop(INVERSE_MAP, None)
    weights = {name: tensor for name, tensor in tensors.items() if EMBEDDING not in name}
    vocabulary_plugin.check_map(model, offsets)
    vocabulary_plugin.write_digest(model, IN_PARTS)
    model.load_weights(list(weights.items()))
    vocabulary_plugin.replace_map(model, offsets)
    vocabulary_plugin.write_digest(model, digest)
