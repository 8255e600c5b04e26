"""The entry point ``sglang.srt.plugins: aurora_vocabulary``: lets a running engine take another draft and its map.

Stock SGLang copies a draft's map (draft id to target id) into its worker once, at the start
(sglang/srt/speculative/eagle_worker_v2.py:365-369). The hook makes the worker and the model share one tensor, a buffer
of the model, so that a swap can write another map into this tensor. Captured CUDA graphs read the same memory. Because
the map is a buffer, the checksum that is compared after a swap covers it.

A second hook lets SGLang answer that a load failed. SGLang's ``/weights_checker`` answers with a checksum for each
named tensor of the draft on each tensor-parallel rank, and a name is the only text in this answer. So the digest of the
file that was loaded is the name of a small buffer of the draft model, and the agent compares it for every rank.

Invariants: the buffer names a file only while the draft is whole. A map changes only together with the weights that
were trained with it. A token that the old weights proposed may still be mapped by the new map. This concerns at most
the first proposed token of each running request, and the target rejects a wrong token.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from aurora_runtime.engine.draft_update import DIGEST_BUFFER
from aurora_runtime.errors import DraftRefused, EngineMismatch
from aurora_runtime.sglang_uses import Hook, HookKind, check_all, register
from aurora_runtime.sglang_version import require_sglang

PLUGIN: Final = "aurora_vocabulary"
"""The entry point's name, for ``SGLANG_PLUGINS``."""
HOOKED_FUNCTION: Final = "sglang.srt.speculative.eagle_worker_v2.EagleDraftWorker.init_lm_head"
UPDATE_FUNCTION: Final = (
    "sglang.srt.model_executor.model_runner_components.weight_updater.WeightUpdater.update_weights_from_tensor"
)
_MAP_BUFFER: Final = "hot_token_id"
_FAILURE: Final = "aurora_load_failure"


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


def read_digest(model: torch.nn.Module) -> str:
    """The digest of the file that the draft holds. Empty when the draft is the one that the engine started with."""
    names = (name for name, _ in model.named_buffers(recurse=False))
    return next((name.removeprefix(DIGEST_BUFFER) for name in names if name.startswith(DIGEST_BUFFER)), "")


def write_digest(model: torch.nn.Module, digest: str) -> None:
    """Report ``digest``, as :func:`read_digest` returns it, from now on."""
    if former := read_digest(model):
        delattr(model, DIGEST_BUFFER + former)
    if digest:
        data = torch.frombuffer(bytearray.fromhex(digest), dtype=torch.uint8)
        model.register_buffer(DIGEST_BUFFER + digest, data, persistent=False)


def note_failure(model: Any, reason: str) -> None:
    """Keep the reason why a load failed for :func:`answer_failure`."""
    setattr(model, _FAILURE, reason)


def answer_failure(result: tuple[bool, str], updater: Any, *args: object, **kwargs: object) -> tuple[bool, str] | None:
    """Runs after :data:`UPDATE_FUNCTION`. Lets SGLang answer that the load failed, so it changes no version either.

    SGLang catches no error of a loader and would end. It takes each loader that returns for a success.
    """
    model = updater.get_model()
    reason = getattr(model, _FAILURE, None)
    if reason is None:
        return None
    delattr(model, _FAILURE)
    return False, str(reason)


HOOKS: Final = (
    Hook(HOOKED_FUNCTION, share_map, HookKind.AFTER),
    Hook(UPDATE_FUNCTION, answer_failure, HookKind.AFTER),
)


def install() -> None:
    """Register the hooks. They do nothing in an engine without a draft. Raises :class:`EngineMismatch`."""
    require_sglang(f"the plugin {PLUGIN}")
    check_all(HOOKS)
    register(HOOKS)
