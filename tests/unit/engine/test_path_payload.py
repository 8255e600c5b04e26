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

from aurora_runtime.engine.draft_update import LOADER, PATH_TENSOR, path_payload
from aurora_runtime.engine.weight_loader import load_draft
from tests.example_count import example_count


class TensorsOnly(pickle.Unpickler):
    """An unpickler that admits one global, like SGLang's."""

    def find_class(self, module: str, name: str) -> Any:
        assert (module, name) == ("torch", "ByteTensor")
        return torch.ByteTensor


def unpickled(path: Path, digest: str) -> list[tuple[str, torch.Tensor]]:
    payload = base64.b64decode(path_payload(path, digest))
    tensors: list[tuple[str, torch.Tensor]] = TensorsOnly(io.BytesIO(payload)).load()
    return tensors


@settings(max_examples=example_count(40), deadline=None)
@given(
    text=st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=300),
    digest=st.binary(min_size=32, max_size=32),
)
def test_the_payload_holds_the_path_and_the_digest(text: str, digest: bytes) -> None:
    path = Path(text)
    tensors = unpickled(path, digest.hex())
    assert [name for name, _ in tensors] == ["aurora.path", "aurora.digest"]
    for (_, tensor), data in zip(tensors, (str(path).encode(), digest), strict=True):
        assert tensor.dtype is torch.uint8
        assert torch.equal(tensor, torch.tensor(list(data), dtype=torch.uint8))


def test_sglang_finds_the_loader_by_its_name() -> None:
    assert pkgutil.resolve_name(LOADER) is load_draft


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
    load_draft(torch.nn.Module(), tensors)
