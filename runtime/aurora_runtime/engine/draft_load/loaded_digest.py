"""What the engine reports of a load: the digest of the file that its draft model holds, and why a load failed.

SGLang's ``/weights_checker`` answers with a checksum for each named tensor of the draft on each tensor-parallel rank.
The name is the only text in this answer. So the digest is the name of a small buffer of the draft model, and the agent
compares the digest exactly, for every rank.

Invariant: the buffer names a file only while the draft is whole. The loader calls the draft ``IN_PARTS`` before its
first write, and sets the file's digest after the last.

Only SGLang's scheduler imports this module, because it needs torch.
"""

from __future__ import annotations

from typing import Any, Final

import torch

from aurora_runtime.engine.path_payload import DIGEST_BUFFER

HOOKED_FUNCTION: Final = (
    "sglang.srt.model_executor.model_runner_components.weight_updater.WeightUpdater.update_weights_from_tensor"
)
_FAILURE: Final = "aurora_load_failure"


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
    """Runs after :data:`HOOKED_FUNCTION`. Lets SGLang answer that the load failed, so it changes no version either.

    SGLang catches no error of a loader and would end. It takes each loader that returns for a success.
    """
    model = updater.get_model()
    reason = getattr(model, _FAILURE, None)
    if reason is None:
        return None
    delattr(model, _FAILURE)
    return False, str(reason)
