"""The entry point ``sglang.srt.plugins: aurora_vocabulary``: a running engine takes another vocabulary map.

Stock SGLang copies a draft's map (draft id to target id) into its worker once, at the start
(sglang/srt/speculative/eagle_worker_v2.py:365-369). The hook makes worker and model share one tensor, a buffer of the
model's, so that a swap can write another map into it; captured CUDA graphs read the same memory. Being a buffer it is
part of the checksum that is compared after a swap.

Invariant: a map changes only together with the weights that speak it. Drafts that were proposed with the former pair
and mapped by the new one are at most the first of each running request, and the target rejects what is wrong.
"""

from __future__ import annotations

from importlib.metadata import version as version_of
from typing import Any, Final

import torch
from torch import Tensor

from aurora_runtime.engine import SGLANG_VERSION
from aurora_runtime.errors import EngineMismatch

PLUGIN: Final = "aurora_vocabulary"
"""The entry point's name, for ``SGLANG_PLUGINS``."""
START: Final = "sglang.srt.speculative.eagle_worker_v2.EagleDraftWorker.init_lm_head"
_BUFFER: Final = "hot_token_id"


def join(result: None, worker: Any, *args: object, **kwargs: object) -> None:
    """After :data:`START`: the model's map becomes the worker's tensor, on the worker's device."""
    model, ids = worker.draft_runner.model, worker.hot_token_id
    if ids is None or not hasattr(model, _BUFFER):
        return
    delattr(model, _BUFFER)  # a plain attribute in SGLang, which no checksum sees
    model.register_buffer(_BUFFER, ids, persistent=False)


def replace(model: torch.nn.Module, offsets: Tensor) -> None:
    """Write the map ``offsets`` ``[draft_vocab]`` (``d2t``: target id less draft id) in place of the model's.

    Raises :class:`EngineMismatch` when it is another map and this engine was started without the hook.
    """
    ids = offsets + torch.arange(offsets.shape[0])
    held = getattr(model, _BUFFER, None)
    if held is not None and held.shape == ids.shape and torch.equal(held.cpu(), ids):
        return
    if _BUFFER not in dict(model.named_buffers(recurse=False)):
        raise EngineMismatch(f"another vocabulary map needs the plugin {PLUGIN}: is it in SGLANG_PLUGINS?")
    assert isinstance(held, Tensor)
    held.copy_(ids)


def install() -> None:
    """Register the hook; it does nothing where no draft is served. Raises :class:`EngineMismatch`."""
    if (found := version_of("sglang")) != SGLANG_VERSION:
        raise EngineMismatch(f"SGLang {found} is installed; {PLUGIN} knows {SGLANG_VERSION}")
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(START, join, HookType.AFTER)
