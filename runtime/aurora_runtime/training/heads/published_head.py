"""Reads a published EAGLE-3 head, from a folder or from the Hugging Face hub, into a draft and its vocabulary map.

Invariants: a head's files are untrusted. No pickle is read, no code of a head runs, and no tensor is read before its
name, shape and number format were checked. A head that passes has finite weights and the computation of
:class:`DraftModel`, so SGLang serves what the trainer trains.

SGLang gives every EAGLE-3 draft the target's embedding (``eagle_worker_v2.py``, ``set_embed``). So an embedding of the
head's own is dropped where it equals the target's, and refused elsewhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from aurora_api.v1alpha1.draft import PublishedHead
from aurora_protocol.draft_records import InitialHead, TensorSpec
from aurora_runtime.engine.draft_config import DraftConfig
from aurora_runtime.engine.draft_file_check import INVERSE_MAP, MAX_HEADER_BYTES, VOCABULARY_MAP, read_header
from aurora_runtime.errors import DraftRefused, HeadRefused
from aurora_runtime.models.draft_sizes import weight_shapes
from aurora_runtime.models.head_config import HeadConfig, TargetSizes, head_config, refusal
from aurora_runtime.models.head_files import HeadFiles
from aurora_runtime.training.heads.head_vocabulary import AmbiguousMap, target_ids
from aurora_runtime.training.model.draft import DraftModel
from aurora_runtime.training.target.target_model import TargetModel
from aurora_store.objects import sha256_file

HEAD_DIGEST: Final = "initial_sha256"
"""Key in the provenance of a draft that is a published head: the head's digest."""
MADE_FOR_HEAD_DIGEST: Final = "made_for_initial_sha256"
"""Key in the provenance of an untrained draft with a published head's sizes: the head's digest."""
MAX_WEIGHTS_BYTES: Final = 64 << 30
"""What the weights of a head take at most, whatever its config.json says."""
MAX_TENSORS_NAMED: Final = 5
HEAD: Final = "lm_head.weight"
EMBEDDING: Final = "embed_tokens.weight"
_FLOATS: Final = ("BF16", "F16", "F32")
_MAP_DTYPES: Final = {VOCABULARY_MAP: ("I64", "I32"), INVERSE_MAP: ("BOOL", "U8")}
_UNUSED: Final = ("verifier_lm_head.weight", "verifier_norm.weight")
"""Copies of the target's parts, with which speculators compute their training's goal."""
_UNUSED_SUFFIX: Final = "rotary_emb.inv_freq"
_RELATIVE_TOLERANCE: Final = 2**-7
"""Twice the rounding of bf16: the same embedding in another number format passes."""
_ABSOLUTE_TOLERANCE: Final = 1e-5
_COMPARED_ROWS: Final = 8192


@dataclass(frozen=True)
class ImportedHead:
    """A published head as a draft of ours."""

    draft: DraftModel
    ids: Tensor  # [draft_vocab] int64, ascending: the target ids of the draft's tokens
    origin: InitialHead


@dataclass(frozen=True)
class _StoredTensor:
    """Where a tensor lies: its file, and its name there."""

    path: Path
    name: str
    spec: TensorSpec

    def read(self) -> Tensor:
        with safe_open(self.path, "pt") as file:
            tensor: Tensor = file.get_tensor(self.name)
        return tensor


def read_head(head: PublishedHead, target: TargetModel) -> ImportedHead:
    """The head as a draft of ``target``.

    Raises :class:`HeadRefused` when the head cannot be used, and
    :class:`~aurora_runtime.errors.TargetUnavailable` when a file is missing or the hub cannot be reached.
    """
    files = HeadFiles(head)
    config = head_config(head.model, files.config(), _target_sizes(target))
    paths = files.weights(max_head_bytes(config.draft))
    tensors = _stored_tensors(head, paths)
    _require_tensors(head, config, tensors)
    try:
        ids, weights = _weights(head, config, tensors, target)
    except SafetensorError as error:
        raise _refusal(head, f"its weights are damaged ({error})", "Download or publish them again") from error
    draft = DraftModel(config.draft, target.embedding)
    draft.load_state_dict(weights)
    return ImportedHead(
        draft, ids, InitialHead(model=head.model, revision=head.revision, sha256=_digest(sorted(paths)))
    )


def _refusal(head: PublishedHead, fact: str, advice: str) -> HeadRefused:
    return refusal(head.model, fact, advice)


def _target_sizes(target: TargetModel) -> TargetSizes:
    return TargetSizes(
        hidden_size=target.identity.hidden_size,
        vocab_size=target.identity.vocab_size,
        layers=target.config.layers,
        max_positions=target.config.max_positions,
    )


def _stored_tensors(head: PublishedHead, paths: set[Path]) -> dict[str, _StoredTensor]:
    """The head's tensors under the names of our drafts."""
    found: dict[str, _StoredTensor] = {}
    for path in sorted(paths):
        try:
            with path.open("rb") as file:
                entries, _ = read_header(file, path.stat().st_size)
        except DraftRefused as error:
            raise _refusal(head, f"{path.name}: {error}", "Download or publish it again") from error
        for stored, entry in entries.items():
            name = stored.removeprefix("model.").replace("layers.0.", "midlayer.", 1)
            if name in found:
                raise _refusal(head, f"it has the tensor {name[:64]} twice", "Publish it again")
            if name not in _UNUSED and not name.endswith(_UNUSED_SUFFIX):
                found[name] = _StoredTensor(path, stored, entry.spec)
    return found


def max_head_bytes(config: DraftConfig) -> int:
    """What the files of a head of these sizes take at most: all in fp32, with the target's parts that some store."""
    elements = sum(map(prod, weight_shapes(config).values()))
    targets_parts = 2 * config.vocab_size * config.hidden_size + config.hidden_size
    maps = 9 * config.vocab_size
    return min(MAX_WEIGHTS_BYTES, 4 * (elements + targets_parts) + maps + MAX_HEADER_BYTES)


def _require_tensors(head: PublishedHead, config: HeadConfig, tensors: Mapping[str, _StoredTensor]) -> None:
    """Raise :class:`HeadRefused` unless the tensors are those of a draft with this config."""
    draft = config.draft
    expected = weight_shapes(draft)
    if config.shares_target_head:
        del expected[HEAD]
        if HEAD in tensors:
            raise _refusal(
                head,
                f"it has {HEAD}, and config.json does not say how many tokens that scores",
                "Set draft_vocab_size",
            )
    optional = {EMBEDDING: (draft.vocab_size, draft.hidden_size)}
    maps = {name: tensors[name].spec.shape for name in _MAP_DTYPES if name in tensors}
    if missing := expected.keys() - tensors.keys():
        raise _refusal(head, f"it lacks {_listed(missing)}", "Use an EAGLE-3 head with one layer")
    if unknown := tensors.keys() - expected.keys() - optional.keys() - maps.keys():
        raise _refusal(head, f"it has {_listed(unknown)}, which no draft has", "Use a plain EAGLE-3 head")
    for name, shape in (expected | optional | maps).items():
        if name not in tensors:
            continue
        spec = tensors[name].spec
        if spec.shape != shape:
            raise _refusal(
                head, f"{name} has the shape {list(spec.shape)}, and config.json says {list(shape)}", "Correct the head"
            )
        if spec.dtype not in _MAP_DTYPES.get(name, _FLOATS):
            raise _refusal(head, f"{name} has the number format {spec.dtype}", "Publish it in bf16, fp16 or fp32")


def _listed(names: set[str]) -> str:
    return ", ".join(name[:64] for name in sorted(names)[:MAX_TENSORS_NAMED])


def _weights(
    head: PublishedHead, config: HeadConfig, tensors: Mapping[str, _StoredTensor], target: TargetModel
) -> tuple[Tensor, dict[str, Tensor]]:
    """The target ids of the draft's tokens, ascending, and the draft's weights in their order."""
    draft = config.draft
    maps = {name: tensors[name].read() if name in tensors else None for name in _MAP_DTYPES}
    try:
        ids = target_ids(maps[VOCABULARY_MAP], maps[INVERSE_MAP], draft.draft_vocab_size, draft.vocab_size)
    except AmbiguousMap as error:
        raise _refusal(head, str(error), "Add a t2d that marks the target tokens of the draft") from error
    if EMBEDDING in tensors and not _is_close(tensors[EMBEDDING].read(), target.embedding):
        raise _refusal(
            head,
            "its embedding differs from the target's, and SGLang gives every EAGLE-3 draft the target's",
            "Use a head that was trained with the target's embedding",
        )
    others = (EMBEDDING, *_MAP_DTYPES)
    weights = {name: tensor.read().float() for name, tensor in tensors.items() if name not in others}
    for name, weight in weights.items():
        if not bool(weight.isfinite().all()):
            raise _refusal(head, f"{name} holds values that are not finite", "Publish it again")
    order = ids.argsort()
    scores = target.head.float() if config.shares_target_head else weights[HEAD]
    return ids[order], weights | {HEAD: scores[order]}


def _is_close(own: Tensor, embedding: Tensor) -> bool:
    """Whether two embeddings ``[vocab, H]`` are equal but for the rounding of their number formats."""
    return all(
        torch.allclose(
            own[first : first + _COMPARED_ROWS].float(),
            embedding[first : first + _COMPARED_ROWS].float(),
            rtol=_RELATIVE_TOLERANCE,
            atol=_ABSOLUTE_TOLERANCE,
        )
        for first in range(0, embedding.shape[0], _COMPARED_ROWS)
    )


def _digest(paths: list[Path]) -> str:
    """The digest of one file of weights, or of the digests of several."""
    digests = [sha256_file(path) for path in paths]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
