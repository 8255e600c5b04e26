"""A load replaces the whole draft or nothing of it, and the engine reports which file it holds.

``tests/integration/engine/test_weight_loader.py`` loads into SGLang's own model, on one rank and on two. Here is what
SGLang's model does not do: fail on its way, or on one rank only.
"""

from __future__ import annotations

import base64
import hashlib
import io
import pickle
import pkgutil
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from aurora_runtime.engine import vocabulary_plugin
from aurora_runtime.engine.draft_update import DIGEST_TENSOR, IN_PARTS, LOADER, PATH_TENSOR, path_payload
from aurora_runtime.engine.weight_loader import load_draft
from tests.example_count import example_count

IDS = (0, 2, 5)


class Draft(nn.Module):
    """A draft of one matrix beside the target's embedding, as its worker shares it after SGLang's start."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2, bias=False)
        self.embed_tokens = nn.Embedding(8, 2)
        self.hot_token_id = torch.tensor(IDS)  # a plain attribute in SGLang
        self.worker = SimpleNamespace(draft_runner=SimpleNamespace(model=self), hot_token_id=self.hot_token_id.clone())

    def load_weights(self, weights: list[tuple[str, Tensor]]) -> None:
        for name, tensor in weights:
            self.get_parameter(name).data.copy_(tensor)


def shared() -> Draft:
    model = Draft()
    vocabulary_plugin.share_map(None, model.worker)
    return model


def file_tensors(seed: int, ids: tuple[int, ...] = (1, 3, 7)) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "fc.weight": torch.randn(2, 2, generator=generator),
        "embed_tokens.weight": torch.randn(8, 2, generator=generator),
        "d2t": torch.tensor(ids) - torch.arange(3),
        "t2d": torch.zeros(8, dtype=torch.bool).index_fill_(0, torch.tensor(ids), value=True),
    }


def load_request(path: Path, tensors: dict[str, Tensor]) -> tuple[str, list[tuple[str, Tensor]]]:
    """Write a draft file. Returns its digest, and what the loader is given to load it."""
    save_file(tensors, path)
    digest = hashlib.sha256(path.read_bytes())
    parts = {PATH_TENSOR: str(path).encode(), DIGEST_TENSOR: digest.digest()}
    return digest.hexdigest(), [(name, torch.tensor(list(data), dtype=torch.uint8)) for name, data in parts.items()]


def state(model: Draft) -> dict[str, list[Any]]:
    """Every parameter and buffer of the model; the reported digest is the name of a buffer."""
    return {name: tensor.tolist() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}


def answer(model: Draft) -> tuple[bool, str]:
    """What SGLang answers to the update."""
    done = (True, "Success")
    return vocabulary_plugin.answer_failure(done, SimpleNamespace(get_model=lambda: model)) or done


@pytest.fixture
def first(tmp_path: Path) -> Draft:
    """A draft into which one file was loaded."""
    model = shared()
    load_draft(model, load_request(tmp_path / "first", file_tensors(1))[1])
    return model


def test_a_file_replaces_weights_and_map_but_not_the_targets_embedding(tmp_path: Path) -> None:
    model = shared()
    captured, embedding = model.worker.hot_token_id, model.embed_tokens.weight.detach().clone()
    assert not {"hot_token_id"} & model.state_dict().keys(), "the map is not loaded by name"
    tensors = file_tensors(2)
    digest, request = load_request(tmp_path / "draft", tensors)
    load_draft(model, request)
    assert (answer(model), vocabulary_plugin.read_digest(model)) == ((True, "Success"), digest)
    assert torch.equal(model.fc.weight, tensors["fc.weight"])
    assert torch.equal(model.embed_tokens.weight, embedding)
    assert captured.tolist() == [1, 3, 7], "captured graphs read the same memory"
    assert "hot_token_id" in dict(model.named_buffers()), "the map is part of the checksum"


@pytest.mark.parametrize(
    ("offsets", "why"),
    [
        (torch.tensor([1, 2]), r"the map has shape \[2\]"),
        (torch.tensor([1, 2, 5], dtype=torch.int32), "torch.int32"),
        (None, "d2t"),
    ],
    ids=["another size", "another dtype", "no map"],
)
@pytest.mark.parametrize("loaded_before", [True, False])
def test_a_file_whose_map_does_not_fit_changes_nothing(
    first: Draft, tmp_path: Path, offsets: Tensor | None, why: str, loaded_before: bool
) -> None:
    model = first if loaded_before else shared()
    tensors, before = file_tensors(2), state(model)
    del tensors["d2t"]
    load_draft(model, load_request(tmp_path / "draft", tensors | ({} if offsets is None else {"d2t": offsets}))[1])
    success, message = answer(model)
    assert not success
    assert re.search(why, message), message
    assert state(model) == before
    assert answer(model) == (True, "Success"), "a failure is answered once"


def test_a_writer_that_raises_on_its_way_reports_a_draft_in_parts_until_a_file_is_loaded_again(
    first: Draft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a device fault")

    digest, request = load_request(tmp_path / "draft", file_tensors(2))
    with monkeypatch.context() as patch:
        patch.setattr(Draft, "load_weights", fail)
        load_draft(first, request)
    assert answer(first) == (False, "the draft was not loaded: RuntimeError: a device fault")
    assert vocabulary_plugin.read_digest(first) == IN_PARTS
    load_draft(first, request)
    assert (answer(first), vocabulary_plugin.read_digest(first)) == ((True, "Success"), digest)


def test_a_rank_that_fails_keeps_its_former_draft_and_says_so(tmp_path: Path) -> None:
    models = [shared(), shared()]
    old, request = load_request(tmp_path / "first", file_tensors(1))
    for model in models:
        load_draft(model, request)
    new, request = load_request(tmp_path / "draft", file_tensors(2, (0, 1, 2)))
    del models[1].hot_token_id  # so that the file's map does not fit
    for model in models:
        load_draft(model, request)
    assert [vocabulary_plugin.read_digest(model) for model in models] == [new, old]
    assert [answer(model)[0] for model in models] == [True, False]


def test_a_draft_without_the_shared_map_takes_only_a_file_with_its_own_map(tmp_path: Path) -> None:
    model = Draft()
    before = state(model)
    load_draft(model, load_request(tmp_path / "other", file_tensors(2))[1])
    assert "SGLANG_PLUGINS" in answer(model)[1]
    assert state(model) == before
    digest, request = load_request(tmp_path / "same", file_tensors(2, IDS))
    load_draft(model, request)
    assert (answer(model)[0], vocabulary_plugin.read_digest(model)) == (True, digest)


@pytest.mark.parametrize("worker", [SimpleNamespace(hot_token_id=None), SimpleNamespace(hot_token_id=torch.ones(1))])
def test_a_draft_without_a_map_is_not_changed(worker: SimpleNamespace) -> None:
    worker.draft_runner = SimpleNamespace(model=nn.Module())
    vocabulary_plugin.share_map(None, worker)
    assert not list(worker.draft_runner.model.named_buffers())


# the request ---------------------------------------------------------------------------------------------------------


class TensorsOnly(pickle.Unpickler):
    """An unpickler that admits one global, like SGLang's."""

    def find_class(self, module: str, name: str) -> Any:
        assert (module, name) == ("torch", "ByteTensor")
        return torch.ByteTensor


@settings(max_examples=example_count(40), deadline=None)
@given(
    text=st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=300),
    digest=st.binary(min_size=32, max_size=32),
)
def test_the_payload_holds_the_path_and_the_digest(text: str, digest: bytes) -> None:
    tensors = TensorsOnly(io.BytesIO(base64.b64decode(path_payload(Path(text), digest.hex())))).load()
    assert [name for name, _ in tensors] == ["aurora.path", "aurora.digest"]
    for (_, tensor), data in zip(tensors, (str(Path(text)).encode(), digest), strict=True):
        assert tensor.dtype is torch.uint8
        assert torch.equal(tensor, torch.tensor(list(data), dtype=torch.uint8))


def test_sglang_finds_the_loader_by_its_name() -> None:
    assert pkgutil.resolve_name(LOADER) is load_draft


@pytest.mark.parametrize(
    "tensors", [[], [(PATH_TENSOR, torch.tensor([255, 254]))], [(PATH_TENSOR, torch.tensor([0.5]))]]
)
def test_the_loader_never_raises(tensors: list[tuple[str, Tensor]]) -> None:
    load_draft(nn.Module(), tensors)
