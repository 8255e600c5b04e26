"""The entry point ``sglang.srt.plugins: aurora_vocabulary``: lets a running engine take another draft and its map.

Stock SGLang copies a draft's map (draft id to target id) into its worker once, at the start
(sglang/srt/speculative/eagle_worker_v2.py:365-369). The hook makes the worker and the model share one tensor, a buffer
of the model, so that a swap can write another map into this tensor. Captured CUDA graphs read the same memory. Because
the map is a buffer, the checksum that is compared after a swap covers it.

A second hook lets SGLang answer that a load failed (:mod:`aurora_runtime.engine.draft_load.loaded_digest`).

Invariant: a map changes only together with the weights that were trained with it. A token that the old weights proposed
may still be mapped by the new map. This concerns at most the first proposed token of each running request, and the
target rejects a wrong token.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from aurora_runtime.engine.draft_load import loaded_digest
from aurora_runtime.errors import DraftRefused, EngineMismatch
from aurora_runtime.sglang_uses import Hook, HookKind, check_all, register
from aurora_runtime.sglang_version import require_sglang

PLUGIN: Final = "aurora_vocabulary"
"""The entry point's name, for ``SGLANG_PLUGINS``."""
HOOKED_FUNCTION: Final = "sglang.srt.speculative.eagle_worker_v2.EagleDraftWorker.init_lm_head"
_MAP_BUFFER: Final = "hot_token_id"


def share_map(result: None, worker: Any, *args: object, **kwargs: object) -> None:
    """Runs after :data:`HOOKED_FUNCTION`. Makes the worker's tensor, on the worker's device, the model's map too."""
    model, ids = worker.draft_runner.model, worker.hot_token_id
    if ids is None or not hasattr(model, _MAP_BUFFER):
        return
    delattr(model, _MAP_BUFFER)  # a plain attribute in SGLang, which no checksum sees
    model.register_buffer(_MAP_BUFFER, ids, persistent=False)


def check_map(model: torch.nn.Module, offsets: Tensor) -> None:
    """Raise unless :func:`replace_map` can write ``offsets`` ``[draft_vocab]``. Changes nothing.

    Raises:
        EngineMismatch: the map differs, and this engine was started without the hook.
        DraftRefused: the map has another size or another dtype.
    """
    current = getattr(model, _MAP_BUFFER, None)
    size = None if current is None else tuple(current.shape)
    if offsets.dtype != torch.int64 or size not in (None, tuple(offsets.shape)):
        raise DraftRefused(f"the map has shape {list(offsets.shape)} and {offsets.dtype}, expected {size} of int64")
    if not _is_shared(model) and (current is None or not torch.equal(current.cpu(), _ids(offsets))):
        raise EngineMismatch(
            f"this draft has another vocabulary map, which needs the plugin {PLUGIN}: add it to SGLANG_PLUGINS"
        )


def replace_map(model: torch.nn.Module, offsets: Tensor) -> None:
    """Write the map ``offsets`` ``[draft_vocab]`` (``d2t``: target id minus draft id) over the model's map.

    Raises as :func:`check_map` does.
    """
    check_map(model, offsets)
    if _is_shared(model):
        model.get_buffer(_MAP_BUFFER).copy_(_ids(offsets))


def _ids(offsets: Tensor) -> Tensor:
    return offsets + torch.arange(offsets.shape[0])


def _is_shared(model: torch.nn.Module) -> bool:
    """Whether the worker reads the model's map, so that a swap may change the map."""
    return _MAP_BUFFER in dict(model.named_buffers(recurse=False))


HOOKS: Final = (
    Hook(HOOKED_FUNCTION, share_map, HookKind.AFTER),
    Hook(loaded_digest.HOOKED_FUNCTION, loaded_digest.answer_failure, HookKind.AFTER),
)


def install() -> None:
    """Register the hooks. They do nothing in an engine without a draft. Raises :class:`EngineMismatch`."""
    require_sglang(f"the plugin {PLUGIN}")
    check_all(HOOKS)
    register(HOOKS)
