"""The trainer reads few tensors of a target, and the errors of a target that it cannot read say what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import httpx
import pytest
from huggingface_hub import _CACHED_NO_EXIST
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

from aurora_api.v1alpha1.target import TargetSpec
from aurora_runtime.errors import TargetUnavailable
from aurora_runtime.training.target.target_model import load_target
from tests.assets.sparse_target import SparseTarget, write_sparse_target
from tests.unit.training import tiny


def test_the_error_for_a_missing_target_file_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(TargetUnavailable, match=r"config\.json"):
        load_target(TargetSpec(model=str(tmp_path)))


def test_the_error_for_a_gated_model_names_hf_token(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise RepositoryNotFoundError("401", response=httpx.Response(401, request=httpx.Request("GET", "http://hub")))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(TargetUnavailable, match="set HF_TOKEN"):
        load_target(TargetSpec(model="meta/gated"))


def serve_from_hub(monkeypatch: pytest.MonkeyPatch, folder: Path, failure: Exception, failing: str) -> None:
    """A hub with the files in ``folder``, that fails for the file ``failing``."""

    def download(_model: str, name: str, **_: object) -> str:
        if name == failing:
            raise failure
        if not (folder / name).is_file():
            raise EntryNotFoundError("404")
        return str(folder / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.mark.parametrize("failure", [LocalEntryNotFoundError("no connection"), TimeoutError("slow")])
@pytest.mark.parametrize("file", ["generation_config.json", "model.safetensors.index.json"])
def test_a_file_that_a_network_error_hides_is_not_taken_for_missing(
    file: str, failure: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.write_target(tmp_path)
    serve_from_hub(monkeypatch, tmp_path, failure, file)
    with pytest.raises(TargetUnavailable, match=file):
        load_target(TargetSpec(model="some/model"))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: _CACHED_NO_EXIST)
    assert load_target(TargetSpec(model="some/model")).identity.vocab_size == tiny.VOCAB, "the hub said so before"


def test_offline_a_file_that_was_not_fetched_counts_as_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.write_target(tmp_path)
    serve_from_hub(monkeypatch, tmp_path, LocalEntryNotFoundError("offline"), "generation_config.json")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert load_target(TargetSpec(model="some/model")).identity.vocab_size == tiny.VOCAB


def fill_cache(monkeypatch: pytest.MonkeyPatch, folder: Path, cache: Path, left_out: str = "") -> None:
    """A cache as ``snapshot_download`` leaves it, and the real client with a hub that nobody can reach."""
    commit = "0123456789" * 4
    snapshot = cache / "models--some--model" / "snapshots" / commit
    shutil.copytree(folder, snapshot, ignore=shutil.ignore_patterns(left_out))
    refs = cache / "models--some--model" / "refs"
    refs.mkdir()
    (refs / "main").write_text(commit)
    closed = "http://127.0.0.1:9"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", closed)
    template = closed + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _seconds: None)  # between its retries


@pytest.mark.parametrize("single_file", [True, False])
def test_a_filled_cache_needs_no_hub(single_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    if single_file:
        tiny.write_target(folder)
    else:
        folder.mkdir()
        write_sparse_target(SMALL, folder, file_bytes=1 << 16)
    assert not (folder / "generation_config.json").exists()
    fill_cache(monkeypatch, folder, tmp_path / "cache")
    cached, stored = load_target(TargetSpec(model="some/model")), load_target(TargetSpec(model=str(folder)))
    assert cached.identity.config_sha256 == stored.identity.config_sha256
    assert cached.special_tokens == stored.special_tokens


@pytest.mark.parametrize(
    ("left_out", "named"),
    [
        ("model.safetensors", "generation_config.json"),
        ("model-00001*", "generation_config.json"),
        ("tokenizer.json", "tokenizer.json"),
    ],
)
def test_without_a_hub_a_cache_that_lacks_a_file_is_refused(
    left_out: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    if left_out.startswith("model-"):
        folder.mkdir()
        write_sparse_target(SMALL, folder, file_bytes=1 << 16)
    else:
        tiny.write_target(folder)
    fill_cache(monkeypatch, folder, tmp_path / "cache", left_out)
    with pytest.raises(TargetUnavailable, match=rf"{named} is not cached.*HF_HUB_OFFLINE=1"):
        load_target(TargetSpec(model="some/model"))


SMALL = SparseTarget(
    hidden=64,
    expert_width=32,
    heads=4,
    kv_heads=2,
    head_dim=16,
    rotary_dim=8,
    layers=2,
    experts=4,
    experts_per_token=2,
    vocab=50,
)


def test_the_experts_of_a_target_are_never_read(tmp_path: Path) -> None:
    index = write_sparse_target(SMALL, tmp_path, file_bytes=1)  # one tensor in each file
    for name, file in index.items():
        if ".experts." in name:
            (tmp_path / file).unlink()
    target = load_target(TargetSpec(model=str(tmp_path)))
    assert target.config.intermediate_size == 2 * 32
    assert target.last_layer.feed_forward == "not copied, because no expert sees all tokens"
    assert "self_attn.q_proj.weight" in target.last_layer.tensors
    assert not any("expert" in name for name in target.last_layer.tensors)


@pytest.mark.parametrize("file", ["../other.safetensors", "/etc/other.safetensors", "model.bin", 7])
def test_an_index_that_names_a_file_outside_the_model_is_refused(file: object, tmp_path: Path) -> None:
    names = write_sparse_target(SMALL, tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(names, file)}))
    with pytest.raises(TargetUnavailable, match=r"weight_map of file names in the model's folder"):
        load_target(TargetSpec(model=str(tmp_path)))


@pytest.mark.parametrize("content", ["", "[]", "[" * 100_000])
def test_a_config_that_is_no_object_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(TargetUnavailable, match=r"config\.json is not"):
        load_target(TargetSpec(model=str(tmp_path)))
