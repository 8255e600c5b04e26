"""SGLang's custom weight loader: reads the draft's weights from a file in the pod, whose path arrives as a tensor.

Only SGLang imports this module, inside its scheduler, because the module needs torch. SGLang calls
``fn(model, named_tensors)`` (sglang/srt/model_executor/model_runner_components/weight_updater.py:374), once on each
tensor-parallel rank. Each rank decides for its own shard, and the agent compares what all ranks report.

Invariants:

- A load is all or nothing. Every tensor is checked against its place before the first write. When a write fails all the
  same, the former weights, vocabulary map and digest are put back.
- The digest of the file is set last (:mod:`aurora_runtime.engine.draft_load.loaded_digest`). The digest is the agent's,
  which has hashed the file just before. Hashing here would lengthen the pause.
- The loader never raises, because SGLang catches no error here and would end.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from aurora_runtime.engine import vocabulary_plugin
from aurora_runtime.engine.draft_file_check import INVERSE_MAP, VOCABULARY_MAP
from aurora_runtime.engine.draft_load import loaded_digest
from aurora_runtime.engine.draft_load.tensor_destinations import EMBEDDING, check_destinations
from aurora_runtime.engine.path_payload import DIGEST_TENSOR, IN_PARTS, PATH_TENSOR
from aurora_runtime.errors import EngineFault, RuntimeFault

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
    """Write all ``tensors``, or none of them.

    Two tensors are left out: the embedding, which in SGLang is the target's own parameter
    (sglang/srt/models/llama.py:910), and the inverse map, which SGLang does not use
    (sglang/srt/models/llama_eagle3.py:355).
    """
    offsets = tensors.pop(VOCABULARY_MAP)
    tensors.pop(INVERSE_MAP, None)
    weights = {name: tensor for name, tensor in tensors.items() if EMBEDDING not in name}
    parameters = check_destinations(model, weights)
    vocabulary_plugin.check_map(model, offsets)
    with _put_back_on_failure(model, parameters):
        loaded_digest.write_digest(model, IN_PARTS)
        model.load_weights(list(weights.items()))
        vocabulary_plugin.replace_map(model, offsets)
        loaded_digest.write_digest(model, digest)


@contextmanager
def _put_back_on_failure(model: Any, parameters: Sequence[str]) -> Iterator[None]:
    """Keep a copy of what a load changes, and write the copy back when the load fails.

    The copy is this rank's shard of one draft, in the host's memory, and only for the duration of the load. The device
    has no memory to spare for it: SGLang gives what is left to the cache, and an allocation here could make a later one
    of SGLang's fail.
    """
    named = dict(model.named_parameters())
    former = {name: named[name].detach().to("cpu", copy=True) for name in parameters}
    former_map = vocabulary_plugin.copy_map(model)
    former_digest = loaded_digest.read_digest(model)
    try:
        yield
    except BaseException as error:
        try:
            _write(named, former)
            vocabulary_plugin.write_map(model, former_map)
        except Exception as second:
            raise EngineFault(f"{error}; and the former weights could not be put back: {second}") from error
        loaded_digest.write_digest(model, former_digest)
        log.warning("aurora: the load failed on its way; the former weights are back in place")
        raise


def _write(parameters: Mapping[str, torch.nn.Parameter], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        parameters[name].data.copy_(value)
