"""The entry point ``sglang.srt.plugins: aurora_vocabulary``: lets a running engine take another vocabulary map.

Stock SGLang copies a draft's map (draft id to target id) into its worker once, at the start
(sglang/srt/speculative/eagle_worker_v2.py:365-369). The hook makes the worker and the model share one tensor, a buffer
of the model, so that a swap can write another map into this tensor. Captured CUDA graphs read the same memory. Because
the map is a buffer, the checksum that is compared after a swap covers it.

Invariant: a map changes only together with the weights that were trained with it. A token that the old weights proposed
may still be mapped by the new map. This concerns at most the first proposed token of each running request, and the
target rejects a wrong token.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from aurora_runtime.errors import EngineMismatch
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


def replace_map(model: torch.nn.Module, offsets: Tensor) -> None:
    """Write the map ``offsets`` ``[draft_vocab]`` (``d2t``: target id minus draft id) over the model's map.

    Raises :class:`EngineMismatch` when the map differs and this engine was started without the hook.
    """
    ids = offsets + torch.arange(offsets.shape[0])
    current = getattr(model, _MAP_BUFFER, None)
    if current is not None and current.shape == ids.shape and torch.equal(current.cpu(), ids):
        return
    if _MAP_BUFFER not in dict(model.named_buffers(recurse=False)):
        raise EngineMismatch(
            f"this draft has another vocabulary map, which needs the plugin {PLUGIN}: add it to SGLANG_PLUGINS"
        )
    assert isinstance(current, Tensor)
    current.copy_(ids)


def install() -> None:
    """Register the hook. It does nothing in an engine without a draft. Raises :class:`EngineMismatch`."""
    require_sglang(f"the plugin {PLUGIN}")
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(HOOKED_FUNCTION, share_map, HookType.AFTER)
