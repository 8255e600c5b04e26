"""The files of a published model, from a directory or from the Hugging Face hub.

Invariant: only the files that are asked for are fetched. The names of files and tensors come from outside, so a name
that leaves the model's folder is refused.

An optional file is missing only if the hub says so, or said so before. A network error says nothing. One exception: a
cluster without internet has a cache that ``snapshot_download`` filled, which keeps no note of missing files. So while
the hub cannot be reached, an optional file is missing where all weights are cached. Readers therefore ask for optional
files before weights: whoever fetches single files then knows about the optional ones before the weights are cached.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from safetensors import SafetensorError, safe_open

from aurora_runtime.errors import DamagedFile, HubUnreachable, MissingFile, TargetUnavailable

if TYPE_CHECKING:  # the launcher imports this module, and stays small as long as it does not import torch
    from torch import Tensor

CONFIG_FILE, TOKENIZER_FILE, GENERATION_FILE = "config.json", "tokenizer.json", "generation_config.json"
INDEX_FILE, SINGLE_FILE = "model.safetensors.index.json", "model.safetensors"
_SAFETENSORS: Final = ".safetensors"


class ModelFiles:
    """The files of the model ``name`` (a directory, or an id on the hub) at ``revision``.

    Every method raises :class:`TargetUnavailable` when a file is missing or out of reach, and :class:`DamagedFile` when
    a file cannot be read.
    """

    def __init__(self, name: str, revision: str | None, *, cached_only: bool = False) -> None:
        """``cached_only``: of a model on the hub, use only files that were fetched before."""
        self.name, self.revision = name, revision
        self._cached_only = cached_only
        self.folder = Path(name) if Path(name).is_dir() else None

    def path(self, name: str) -> Path:
        """The path of the file ``name``, which is fetched from the hub if necessary."""
        if self.folder is not None:
            path = self.folder / name
            if not path.is_file():
                raise MissingFile(f"{self.folder} has no {name}")
            return path
        from huggingface_hub import constants, hf_hub_download

        cached_only = self._cached_only or constants.HF_HUB_OFFLINE
        with hub_errors(self.name, self.revision, name, cached_only=cached_only):
            return Path(hf_hub_download(self.name, name, revision=self.revision, local_files_only=cached_only))

    def has(self, name: str) -> bool:
        """Whether the model has the file ``name``, and with ``cached_only`` whether the file was fetched before."""
        try:
            self.path(name)
        except MissingFile:
            return False
        except TargetUnavailable as error:
            if self._is_known_missing(name) or (isinstance(error, HubUnreachable) and self._has_cached_weights()):
                return False
            raise
        return True

    def _is_known_missing(self, name: str) -> bool:
        """Whether the hub said before that there is no such file. So a cached model needs no hub."""
        from huggingface_hub import _CACHED_NO_EXIST

        return self._cache_entry(name) is _CACHED_NO_EXIST

    def _has_cached_weights(self) -> bool:
        """Whether all weights of the model were fetched before."""
        if self._is_cached(SINGLE_FILE):
            return True
        return self._is_cached(INDEX_FILE) and all(map(self._is_cached, set(self.tensor_files.values())))

    def _is_cached(self, name: str) -> bool:
        return isinstance(self._cache_entry(name), str)

    def _cache_entry(self, name: str) -> object:
        """The path of a file that was fetched before, a mark of a file that the hub has not, or None."""
        from huggingface_hub import try_to_load_from_cache

        with hub_errors(self.name, self.revision, name):
            return try_to_load_from_cache(self.name, name, revision=self.revision)

    def read(self, name: str) -> bytes:
        return self.path(name).read_bytes()

    def read_object(self, name: str) -> dict[str, Any]:
        """The JSON object in the file ``name``."""
        try:
            data = json.loads(self.read(name))
        except (ValueError, RecursionError) as error:  # RecursionError: a file of brackets
            raise DamagedFile(f"{self.name}: {name} is not JSON") from error
        if not isinstance(data, dict):
            raise DamagedFile(f"{self.name}: {name} is not a JSON object")
        return data

    @cached_property
    def tensor_files(self) -> dict[str, str]:
        """Tensor name -> name of the file that holds the tensor."""
        if not self.has(INDEX_FILE):
            try:
                with safe_open(self.path(SINGLE_FILE), "pt") as file:
                    return dict.fromkeys(file.keys(), SINGLE_FILE)
            except SafetensorError as error:
                raise DamagedFile(f"{self.name}: {SINGLE_FILE} is damaged ({error})") from error
        files = self.read_object(INDEX_FILE).get("weight_map")
        if not isinstance(files, dict) or not all(map(_is_file_of_the_model, set(files.values()))):
            raise DamagedFile(f"{self.name}: {INDEX_FILE} has no weight_map of file names in the model's folder")
        return files

    def tensor(self, name: str) -> Tensor:
        """The tensor ``name`` as stored."""
        if name not in self.tensor_files:
            raise TargetUnavailable(f"{self.name} has no tensor {name}")
        file_name = self.tensor_files[name]
        try:
            with safe_open(self.path(file_name), "pt") as file:
                tensor: Tensor = file.get_tensor(name)
        except SafetensorError as error:
            raise DamagedFile(f"{self.name}: {file_name} is damaged ({error})") from error
        return tensor


@contextmanager
def hub_errors(model: str, revision: str | None, wanted: str, *, cached_only: bool = False) -> Iterator[None]:
    """Turn errors of the hub into :class:`TargetUnavailable`, and into :class:`MissingFile` where there is no file.

    A hub that gives no answer is :class:`HubUnreachable`.

    ``wanted`` names what is asked for. With ``cached_only`` a file that is not cached counts as missing.
    """
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        yield
    except LocalEntryNotFoundError as error:
        fact = f"{model}: the hub cannot be reached and {wanted} is not cached"
        if cached_only:
            raise MissingFile(fact) from error
        advice = "in a cluster without internet, fill the cache with all files of the model and set HF_HUB_OFFLINE=1"
        raise HubUnreachable(f"{fact}; {advice}") from error
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise TargetUnavailable(
            f"{model} does not exist or needs access: set HF_TOKEN in the templates of serving and training"
        ) from error
    except EntryNotFoundError as error:
        raise MissingFile(f"{model} has no {wanted} at revision {revision or 'main'}") from error
    except HFValidationError as error:
        raise TargetUnavailable(f"{model} is neither a directory in this container nor a Hugging Face id") from error
    except (HfHubHTTPError, OSError) as error:
        raise TargetUnavailable(f"{model}: fetching {wanted} failed ({type(error).__name__})") from error


def _is_file_of_the_model(name: object) -> bool:
    if not isinstance(name, str) or not name.endswith(_SAFETENSORS):
        return False
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts
