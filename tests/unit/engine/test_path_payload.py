"""SGLang's unpickler admits the payload, and our loader inside its scheduler reads it."""

from __future__ import annotations

import base64
import io
import pickle
import pkgutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from aurora_runtime.engine.path_payload import LOADER, PATH_TENSOR, path_payload
from aurora_runtime.engine.weight_loader import load_draft


class TensorsOnly(pickle.Unpickler):
    """An unpickler that admits one global, like SGLang's."""

    def find_class(self, module: str, name: str) -> Any:
        assert (module, name) == ("torch", "ByteTensor")
        return torch.ByteTensor


def unpickled(path: Path) -> list[tuple[str, torch.Tensor]]:
    tensors: list[tuple[str, torch.Tensor]] = TensorsOnly(io.BytesIO(base64.b64decode(path_payload(path)))).load()
    return tensors


@settings(max_examples=40, deadline=None)
@given(text=st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=300))
def test_the_payload_holds_the_path(text: str) -> None:
    path = Path(text)
    ((name, tensor),) = unpickled(path)
    assert name == "aurora.path"
    assert tensor.dtype is torch.uint8
    assert torch.equal(tensor, torch.tensor(list(str(path).encode()), dtype=torch.uint8))


OFFSETS = torch.tensor([3, 4])


class RecordingModel(torch.nn.Module):
    """A model as SGLang starts it, whose map is shared with its worker."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.register_buffer("hot_token_id", torch.tensor([0, 1]), persistent=False)

    def load_weights(self, weights: list[tuple[str, torch.Tensor]]) -> None:
        self.loaded = [name for name, _ in weights]


class RefusingModel(RecordingModel):
    def load_weights(self, weights: list[tuple[str, torch.Tensor]]) -> None:
        raise AttributeError("a model of another make")


@pytest.fixture
def draft(tmp_path: Path) -> Path:
    names = ("fc.weight", "t2d", "model.embed_tokens.weight", "lm_head.weight")
    file = tmp_path / "drafts of ä" / "model.safetensors"
    file.parent.mkdir()
    save_file({name: torch.zeros(2) for name in names} | {"d2t": OFFSETS}, file)
    return file


def test_sglang_finds_the_loader_by_its_name() -> None:
    assert pkgutil.resolve_name(LOADER) is load_draft


def test_the_loader_loads_all_tensors_but_the_embedding(draft: Path) -> None:
    model = RecordingModel()
    load_draft(model, unpickled(draft))
    assert sorted(model.loaded) == ["fc.weight", "lm_head.weight"]
    assert model.get_buffer("hot_token_id").tolist() == [3, 5]


def test_without_the_hook_a_draft_with_another_map_is_not_loaded(draft: Path) -> None:
    model = RecordingModel()
    del model.hot_token_id
    model.hot_token_id = torch.tensor([0, 1])
    load_draft(model, unpickled(draft))
    assert model.loaded == []
    model.hot_token_id = torch.tensor([3, 5])
    load_draft(model, unpickled(draft))
    assert sorted(model.loaded) == ["fc.weight", "lm_head.weight"]


@pytest.mark.parametrize(
    "tensors",
    [
        [(PATH_TENSOR, torch.tensor(list(b"/nowhere"), dtype=torch.uint8))],
        [],
        [("path", torch.tensor(list(b"/nowhere"), dtype=torch.uint8))],
        [(PATH_TENSOR, torch.tensor([255, 254]))],
        [(PATH_TENSOR, torch.tensor([0.5]))],
    ],
)
def test_the_loader_never_raises(tensors: list[tuple[str, torch.Tensor]]) -> None:
    model = RecordingModel()
    load_draft(model, tensors)
    assert model.loaded == []


def test_the_loader_catches_errors_of_the_model(draft: Path) -> None:
    load_draft(RefusingModel(), unpickled(draft))
