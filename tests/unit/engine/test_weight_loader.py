"""A load replaces the whole draft or nothing of it, and the engine reports which file it holds."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from aurora_runtime.engine import vocabulary_plugin
from aurora_runtime.engine.draft_update import IN_PARTS
from aurora_runtime.engine.weight_loader import load_draft
from tests.unit.engine.sglang_draft import DRAFT_VOCABULARY, Draft, file_tensors, load_request

Q, V = "midlayer.self_attn.q_proj.weight", "midlayer.self_attn.v_proj.weight"
LAYER, EMBEDDING = "model.layers.0", "model.embed_tokens.weight"
QKV, GATE_UP = f"{LAYER}.self_attn.qkv_proj.weight", f"{LAYER}.mlp.gate_up_proj.weight"


def state(model: Draft) -> dict[str, Tensor]:
    """Every parameter and buffer of the model; the reported digest is the name of a buffer."""
    return {name: tensor.detach().clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}


def is_unchanged(model: Draft, before: dict[str, Tensor]) -> bool:
    """Whether the state is bit-identical."""
    after = state(model)
    return after.keys() == before.keys() and all(
        after[name].dtype == tensor.dtype and torch.equal(after[name].view(torch.uint8), tensor.view(torch.uint8))
        for name, tensor in before.items()
    )


def answer(model: Draft) -> tuple[bool, str]:
    """What SGLang answers to the update."""
    done = (True, "Success")
    return vocabulary_plugin.answer_failure(done, SimpleNamespace(get_model=lambda: model)) or done


@pytest.fixture
def first(tmp_path: Path) -> Draft:
    """A draft into which one file was loaded."""
    model = Draft()
    digest, request = load_request(tmp_path / "first", file_tensors(1))
    load_draft(model, request)
    assert answer(model) == (True, "Success")
    assert vocabulary_plugin.read_digest(model) == digest
    return model


@pytest.mark.parametrize("ranks", [1, 2])
def test_every_rank_takes_its_shard_of_the_file_and_reports_its_digest(tmp_path: Path, ranks: int) -> None:
    tensors = file_tensors(2)
    digest, request = load_request(tmp_path / "draft", tensors)
    models = [Draft(rank, ranks) for rank in range(ranks)]
    embedding = models[0].get_parameter(EMBEDDING).detach().clone()
    for model in models:
        load_draft(model, request)
        assert vocabulary_plugin.read_digest(model) == digest
        assert torch.equal(model.get_buffer("hot_token_id"), tensors["d2t"] + torch.arange(DRAFT_VOCABULARY))
        assert torch.equal(model.get_parameter(EMBEDDING), embedding), "the target's own parameter"
    parameters = [dict(model.named_parameters()) for model in models]
    queries = torch.cat([p[QKV].chunk(2)[0] for p in parameters])
    assert torch.equal(queries, tensors[Q])
    assert torch.equal(torch.cat([p[QKV].chunk(4)[3] for p in parameters]), tensors[V])
    assert torch.equal(torch.cat([p[GATE_UP].chunk(2)[1] for p in parameters]), tensors["midlayer.mlp.up_proj.weight"])
    down = torch.cat([p["model.layers.0.mlp.down_proj.weight"] for p in parameters], 1)
    assert torch.equal(down, tensors["midlayer.mlp.down_proj.weight"])
    rows = DRAFT_VOCABULARY // ranks
    assert torch.equal(torch.cat([p["lm_head.weight"][:rows] for p in parameters]), tensors["lm_head.weight"])
    assert torch.equal(parameters[0]["model.norm.weight"], tensors["norm.weight"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_another_plain_dtype_is_converted_as_at_the_engines_start(
    first: Draft, tmp_path: Path, dtype: torch.dtype
) -> None:
    tensors = {name: t.to(dtype) if t.is_floating_point() else t for name, t in file_tensors(2).items()}
    load_draft(first, load_request(tmp_path / "draft", tensors)[1])
    assert answer(first) == (True, "Success")
    assert torch.equal(first.get_parameter("lm_head.weight")[:DRAFT_VOCABULARY], tensors["lm_head.weight"].float())


FAULTS: dict[str, tuple[Callable[[Tensor], Tensor | None], str]] = {
    "a map of another size": (lambda t: t[:-1].clone(), r"the map has shape \[19\]"),
    "a map of another dtype": (lambda t: t.int(), "torch.int32"),
    "no map": (lambda _: None, "d2t"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("loaded_before", [True, False])
def test_a_file_whose_map_does_not_fit_changes_nothing(
    first: Draft, tmp_path: Path, fault: str, loaded_before: bool
) -> None:
    model = first if loaded_before else Draft()
    change, why = FAULTS[fault]
    tensors = file_tensors(2)
    changed = change(tensors.pop("d2t"))
    before = state(model)
    load_draft(model, load_request(tmp_path / "draft", tensors | ({} if changed is None else {"d2t": changed}))[1])
    success, message = answer(model)
    assert not success
    assert re.search(why, message), message
    assert is_unchanged(model, before)
    assert answer(model) == (True, "Success"), "a failure is answered once"


def test_a_writer_that_raises_on_its_way_reports_a_draft_in_parts_until_a_file_is_loaded_again(
    first: Draft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Draft.load_weights

    def fail(model: Draft, weights: list[tuple[str, Tensor]]) -> None:
        load(model, weights[:6])
        raise RuntimeError("a device fault")

    digest, request = load_request(tmp_path / "draft", file_tensors(2))
    monkeypatch.setattr(Draft, "load_weights", fail)
    load_draft(first, request)
    assert answer(first) == (False, "the draft was not loaded: RuntimeError: a device fault")
    assert vocabulary_plugin.read_digest(first) == IN_PARTS
    monkeypatch.setattr(Draft, "load_weights", load)
    load_draft(first, request)
    assert (answer(first), vocabulary_plugin.read_digest(first)) == ((True, "Success"), digest)


def test_a_rank_that_fails_keeps_its_former_draft_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = [Draft(rank, 2) for rank in range(2)]
    old, request = load_request(tmp_path / "first", file_tensors(1))
    for model in models:
        load_draft(model, request)
    new, request = load_request(tmp_path / "draft", file_tensors(2))
    del models[1].hot_token_id  # so that the file's map does not fit
    for model in models:
        load_draft(model, request)
    assert [vocabulary_plugin.read_digest(model) for model in models] == [new, old]
    assert [answer(model)[0] for model in models] == [True, False]


def test_a_draft_without_the_shared_map_takes_only_a_file_with_its_own_map(tmp_path: Path) -> None:
    model = Draft()
    ids = model.hot_token_id
    del model.hot_token_id
    model.hot_token_id = ids  # a plain attribute, as without the hook
    before = state(model)
    load_draft(model, load_request(tmp_path / "other", file_tensors(2))[1])
    assert "SGLANG_PLUGINS" in answer(model)[1]
    assert is_unchanged(model, before)
    tensors = file_tensors(2) | {"d2t": torch.zeros(DRAFT_VOCABULARY, dtype=torch.int64)}
    digest, request = load_request(tmp_path / "same", tensors)
    load_draft(model, request)
    assert (answer(model)[0], vocabulary_plugin.read_digest(model)) == (True, digest)
