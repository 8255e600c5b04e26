"""The files of a published head, in a folder or on the Hugging Face hub.

Invariants: a file is fetched only after its size is known and allowed, because a repository of any size would fill the
trainer's disk. No other file than those asked for is fetched. Sizes and files are those of one commit. While the hub
cannot be reached, only files that were fetched before are used.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter, ValidationError

from aurora_api.v1alpha1.draft import PublishedHead
from aurora_protocol.draft_records import CONFIG_FILE, WEIGHTS_FILE
from aurora_protocol.record import FileName
from aurora_runtime.engine.draft_config import read_config
from aurora_runtime.errors import DamagedFile, DraftRefused, HeadRefused
from aurora_runtime.models.files import INDEX_FILE, ModelFiles, hub_errors
from aurora_runtime.models.head_config import refusal

MAX_CONFIG_BYTES: Final = 1 << 20
HUB_TIMEOUT_SECONDS: Final = 30.0
"""How long the hub may take to connect, and to send each part of its list of files. The library waits without end."""
_PICKLES: Final = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt")
_UNKNOWN_SIZE: Final = sys.maxsize
"""The hub names the file and not its size, so no limit allows the file."""
_FILE_NAME: Final = TypeAdapter(FileName)


class HeadFiles:
    """The files of ``head``. Methods raise :class:`HeadRefused` or what :class:`ModelFiles` raises."""

    def __init__(self, head: PublishedHead) -> None:
        self._name = head.model
        self._files = ModelFiles(head.model, head.revision)
        self._sizes: Mapping[str, int] | None = None
        if self._files.folder is None:
            self._files, self._sizes = _on_the_hub(head)

    def config(self) -> Mapping[str, object]:
        """The fields of the head's ``config.json``."""
        self._require_size(CONFIG_FILE, MAX_CONFIG_BYTES, "Correct the file")
        try:
            return read_config(self._files.path(CONFIG_FILE))
        except DraftRefused as error:
            raise self._refusal(str(error), "Correct the file") from error

    def weights(self, max_bytes: int) -> set[Path]:
        """The paths of the safetensors files, which are fetched if necessary.

        ``max_bytes``: what they may take together.
        """
        names = self._weight_names()
        total = sum(self._size(name) or 0 for name in names)
        if total > max_bytes:
            raise self._refusal(
                f"its weights take {_bytes(total)}, and a head of its sizes takes at most {max_bytes:,} bytes",
                "Use a head whose files hold nothing but its EAGLE-3 tensors",
            )
        return {self._files.path(name) for name in names}

    def _weight_names(self) -> Collection[str]:
        if self._size(INDEX_FILE) is None:
            if self._size(WEIGHTS_FILE) is None and any(self._size(name) is not None for name in _PICKLES):
                raise self._refusal(
                    "its weights are a pickle, which could run code", "Convert the weights to safetensors"
                )
            return {WEIGHTS_FILE}
        self._require_size(INDEX_FILE, MAX_CONFIG_BYTES, "Use an EAGLE-3 head")
        try:
            names = {_FILE_NAME.validate_python(name) for name in self._files.tensor_files.values()}
        except (DamagedFile, ValidationError) as error:
            raise self._refusal(f"the index of its {WEIGHTS_FILE} cannot be read", "Publish it again") from error
        if not names or not all(name.endswith(".safetensors") for name in names):
            raise self._refusal("the index of its weights names no safetensors files", "Publish it again")
        return names

    def _size(self, name: str) -> int | None:
        """Bytes of the file ``name``. None: there is none."""
        if self._sizes is not None:
            return self._sizes.get(name)
        path = self._files.folder / name if self._files.folder else _cached(self._name, name, self._files.revision)
        return path.stat().st_size if path is not None and path.is_file() else None

    def _require_size(self, name: str, max_bytes: int, advice: str) -> None:
        size = self._size(name)
        if size is not None and size > max_bytes:
            raise self._refusal(f"{name} takes {_bytes(size)}, and at most {max_bytes:,} bytes are read", advice)

    def _refusal(self, fact: str, advice: str) -> HeadRefused:
        return refusal(self._name, fact, advice)


def _on_the_hub(head: PublishedHead) -> tuple[ModelFiles, Mapping[str, int] | None]:
    """The head's files at one commit, with their sizes. Without a reachable hub: the fetched ones, and None."""
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    with hub_errors(head.model, head.revision, "the list of files"):
        try:
            info = HfApi().model_info(
                head.model, revision=head.revision, files_metadata=True, timeout=HUB_TIMEOUT_SECONDS
            )
        except (httpx.TransportError, OfflineModeIsEnabled):
            return ModelFiles(head.model, head.revision, cached_only=True), None
    sizes = {file.rfilename: _UNKNOWN_SIZE if file.size is None else file.size for file in info.siblings or ()}
    return ModelFiles(head.model, info.sha or head.revision), sizes


def _cached(model: str, name: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(model, name, revision=revision)
    return Path(path) if isinstance(path, str) else None


def _bytes(size: int) -> str:
    return "an unknown number of bytes" if size >= _UNKNOWN_SIZE else f"{size:,} bytes"
