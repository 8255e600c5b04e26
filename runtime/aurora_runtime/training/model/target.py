"""The parts of the target that the trainer needs: its config, its tokenizer's digest and a few of its tensors.

Invariant: the model itself is never loaded. Only the needed files are fetched and only the needed tensors are read, so
that a trainer pod fits beside a target many times its size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from aurora_api.v1alpha1.target import TargetSpec
from aurora_protocol.draft_records import TargetIdentity
from aurora_runtime.errors import TargetUnavailable

CONFIG_FILE, TOKENIZER_FILE, GENERATION_FILE = "config.json", "tokenizer.json", "generation_config.json"
INDEX_FILE, SINGLE_FILE = "model.safetensors.index.json", "model.safetensors"
_EMBEDDING = "embed_tokens.weight"
_TENSOR_PREFIXES = ("model.", "language_model.model.", "model.language_model.")


@dataclass(frozen=True)
class TargetModel:
    """A target's identity, its text config, and the tensors that an initial draft copies."""

    identity: TargetIdentity
    config: dict[str, Any]
    special_tokens: tuple[int, ...]  # the tokens that end answers come first
    embedding: Tensor  # [vocab, H], as stored
    head: Tensor  # [vocab, H]; the same as embedding when the two are tied
    norm: Tensor  # [H]
    last_layer: dict[str, Tensor]
    """By name within the layer; empty when the layer's tensors have other names than Llama's."""


def load_target(target: TargetSpec) -> TargetModel:
    """Read ``target`` from a directory, or fetch its needed files from the Hugging Face hub.

    Raises :class:`TargetUnavailable` when files or tensors are missing or the hub cannot be reached.
    """
    files = _TargetFiles(target)
    raw_config = files.read(CONFIG_FILE)
    config = json.loads(raw_config)
    config = config.get("text_config", config)
    names = files.tensor_names()
    prefix = next((p for p in _TENSOR_PREFIXES if p + _EMBEDDING in names), None)
    if prefix is None:
        raise TargetUnavailable(f"{target.model}: no tensor named *{_EMBEDDING}; this architecture is not supported")
    layer = f"{prefix}layers.{config['num_hidden_layers'] - 1}."
    head = next((n for n in ("lm_head.weight", "language_model.lm_head.weight") if n in names), prefix + _EMBEDDING)
    wanted = {prefix + _EMBEDDING, head, f"{prefix}norm.weight", *(n for n in names if n.startswith(layer))}
    tensors = files.tensors(sorted(wanted))
    embedding = tensors[prefix + _EMBEDDING]
    return TargetModel(
        identity=TargetIdentity(
            model=target.model,
            revision=target.revision,
            config_sha256=hashlib.sha256(raw_config).hexdigest(),
            tokenizer_sha256=hashlib.sha256(files.read(TOKENIZER_FILE)).hexdigest(),
            hidden_size=config["hidden_size"],
            vocab_size=embedding.shape[0],
        ),
        config=config,
        special_tokens=tuple(_special_tokens(config, files, embedding.shape[0])),
        embedding=embedding,
        head=tensors[head],
        norm=tensors[f"{prefix}norm.weight"],
        last_layer={n.removeprefix(layer): t for n, t in tensors.items() if n.startswith(layer)},
    )


def _special_tokens(config: dict[str, Any], files: _TargetFiles, vocab_size: int) -> Iterator[int]:
    generation = json.loads(files.read(GENERATION_FILE)) if files.has(GENERATION_FILE) else {}
    ends = [source.get(key) for source in (generation, config) for key in ("eos_token_id", "bos_token_id")]
    flat = [i for end in ends for i in (end if isinstance(end, list) else [end]) if isinstance(i, int)]
    added = json.loads(files.read(TOKENIZER_FILE)).get("added_tokens", [])
    flat += [token["id"] for token in added if token.get("special")]
    return (i for i in dict.fromkeys(flat) if i < vocab_size)


class _TargetFiles:
    """The target's files, from a directory or from the hub."""

    def __init__(self, target: TargetSpec) -> None:
        self.name, self.revision = target.model, target.revision
        self.folder = Path(target.model) if Path(target.model).is_dir() else None

    def path(self, name: str) -> Path:
        if self.folder is not None:
            path = self.folder / name
            if not path.is_file():
                raise TargetUnavailable(f"{self.folder} has no {name}")
            return path
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import (
            EntryNotFoundError,
            GatedRepoError,
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
        )

        try:
            return Path(hf_hub_download(self.name, name, revision=self.revision))
        except LocalEntryNotFoundError as error:
            raise TargetUnavailable(f"{self.name}: the hub cannot be reached and {name} is not cached") from error
        except (GatedRepoError, RepositoryNotFoundError) as error:
            raise TargetUnavailable(
                f"{self.name} does not exist or needs access: set HF_TOKEN in the templates of serving and training"
            ) from error
        except EntryNotFoundError as error:
            raise TargetUnavailable(f"{self.name} has no {name} at revision {self.revision or 'main'}") from error
        except HFValidationError as error:
            raise TargetUnavailable(
                f"{self.name} is neither a directory in this container nor a Hugging Face id"
            ) from error
        except (HfHubHTTPError, OSError) as error:
            raise TargetUnavailable(f"{self.name}: fetching {name} failed ({type(error).__name__})") from error

    def has(self, name: str) -> bool:
        try:
            self.path(name)
        except TargetUnavailable:
            return False
        return True

    def read(self, name: str) -> bytes:
        return self.path(name).read_bytes()

    def tensor_names(self) -> dict[str, str]:
        """Tensor name -> name of the file that holds the tensor."""
        if self.has(INDEX_FILE):
            names: dict[str, str] = json.loads(self.read(INDEX_FILE))["weight_map"]
            return names
        with safe_open(self.path(SINGLE_FILE), "pt") as file:
            return dict.fromkeys(file.keys(), SINGLE_FILE)

    def tensors(self, names: list[str]) -> dict[str, Tensor]:
        file_of, loaded = self.tensor_names(), dict[str, Tensor]()
        for name in names:
            if name not in file_of:
                raise TargetUnavailable(f"{self.name} has no tensor {name}")
            try:
                with safe_open(self.path(file_of[name]), "pt") as file:
                    tensor = file.get_tensor(name)
            except SafetensorError as error:
                raise TargetUnavailable(f"{self.name}: {file_of[name]} is damaged ({error})") from error
            loaded[name] = tensor if tensor.dtype in (torch.bfloat16, torch.float16) else tensor.to(torch.bfloat16)
        return loaded
