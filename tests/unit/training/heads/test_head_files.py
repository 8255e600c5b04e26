"""No file of a head is fetched before its size is known and allowed, and none that is not needed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.hf_api import ModelInfo

from aurora_api.v1alpha1.draft import PublishedHead
from aurora_runtime.errors import HeadRefused, TargetUnavailable
from aurora_runtime.training.heads.published_head import max_head_bytes, read_head
from aurora_runtime.training.target.target_model import TargetModel
from tests.unit.training.heads import published

HEAD = PublishedHead(model="somebody/head", revision="main")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """A repository in a folder. ``sizes`` overrides what the hub says; ``error`` is raised when it is asked."""

    folder: Path
    sizes: dict[str, int | None] = field(default_factory=dict)
    error: Exception | None = None
    fetched: list[str] = field(default_factory=list)
    revisions: set[str | None] = field(default_factory=set)
    cached_only: bool = False

    def model_info(
        self, _: object, model: str, *, revision: str | None, files_metadata: bool, timeout: float | None
    ) -> ModelInfo:
        assert (model, revision, files_metadata) == (HEAD.model, HEAD.revision, True)
        assert timeout, "a hub that hangs must not hold up the trainer"
        if self.error:
            raise self.error
        sizes = {path.name: path.stat().st_size for path in self.folder.iterdir()} | self.sizes
        siblings = [{"rfilename": name, "size": size} for name, size in sizes.items()]
        return ModelInfo(id=model, sha=COMMIT, siblings=siblings)  # type: ignore[no-untyped-call]

    def download(self, model: str, name: str, *, revision: str | None, local_files_only: bool) -> str:
        self.fetched.append(name)
        self.revisions.add(revision)
        self.cached_only = local_files_only
        if not (self.folder / name).exists():
            raise LocalEntryNotFoundError(name)
        return str(self.folder / name)

    def cached(self, model: str, name: str, *, revision: str | None) -> str | None:
        return str(self.folder / name) if (self.folder / name).exists() else None


@pytest.fixture(name="hub")
def _hub(model: TargetModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    draft, vocabulary = published.trained_draft(model)
    published.write(tmp_path / "hub", published.speculators(draft, vocabulary.to_target, model))
    for other in ("pytorch_model.bin", "optimizer.pt", "README.md"):
        (tmp_path / "hub" / other).write_bytes(b"x")
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *a, **b: hub.model_info(*a, **b))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", hub.download)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", hub.cached)
    return hub


def test_only_config_and_weights_are_fetched_and_of_the_commit_whose_sizes_were_read(
    hub: Hub, model: TargetModel
) -> None:
    read_head(HEAD, model)
    assert hub.fetched == ["config.json", "model.safetensors"]
    assert hub.revisions == {COMMIT}
    published.in_two_files(hub.folder)
    hub.fetched.clear()
    read_head(HEAD, model)
    parts = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    assert sorted(set(hub.fetched)) == ["config.json", *parts, "model.safetensors.index.json"]


@pytest.mark.parametrize(
    ("sizes", "fetched", "words"),
    [
        ({"config.json": (1 << 20) + 1}, [], "config.json takes 1,048,577 bytes, and at most 1,048,576 bytes are read"),
        ({"config.json": None}, [], "config.json takes an unknown number of bytes"),
        (
            {"model.safetensors": 1 << 40},
            ["config.json"],
            "its weights take 1,099,511,627,776 bytes, and a head of its",
        ),
        ({"model.safetensors": None}, ["config.json"], "its weights take an unknown number of bytes"),
        (
            {"model.safetensors.index.json": 1 << 30},
            ["config.json"],
            "model.safetensors.index.json takes 1,073,741,824",
        ),
    ],
)
def test_a_file_that_is_too_large_is_not_fetched(
    hub: Hub, model: TargetModel, sizes: dict[str, int | None], fetched: list[str], words: str
) -> None:
    hub.sizes = sizes
    with pytest.raises(HeadRefused, match=r"cannot be used: .*\. (Use|Correct)") as error:
        read_head(HEAD, model)
    assert words in str(error.value)
    assert hub.fetched == fetched


def test_the_parts_of_the_weights_are_bounded_together(hub: Hub, model: TargetModel) -> None:
    published.in_two_files(hub.folder)
    limit = max_head_bytes(published.trained_draft(model)[0].config)
    hub.sizes = {f"model-0000{n}-of-00002.safetensors": limit // 2 + 1 for n in (1, 2)}
    with pytest.raises(HeadRefused, match=f"at most {limit:,} bytes"):
        read_head(HEAD, model)
    assert not [name for name in hub.fetched if name.startswith("model-")]


def test_a_head_in_a_folder_is_bounded_too(model: TargetModel, tmp_path: Path) -> None:
    draft, vocabulary = published.trained_draft(model)
    head = published.write(tmp_path, published.specforge(draft, vocabulary.to_target, model))
    with (tmp_path / "model.safetensors").open("ab") as file:
        file.truncate(max_head_bytes(draft.config) + 1)
    with pytest.raises(HeadRefused):
        read_head(head, model)


@pytest.mark.parametrize("name", published.FORMATS)
def test_every_format_in_fp32_with_copies_of_the_targets_parts_is_within_the_limit(
    name: str, model: TargetModel, tmp_path: Path
) -> None:
    draft, vocabulary = published.trained_draft(model)
    config, tensors = published.FORMATS[name](draft, vocabulary.to_target, model)
    tensors = {key: t.float() if t.is_floating_point() else t for key, t in tensors.items()}
    tensors |= {"verifier_lm_head.weight": model.head.float().clone(), "embed_tokens.weight": model.embedding.float()}
    tensors["verifier_norm.weight"] = model.norm
    read_head(published.write(tmp_path, (config, tensors)), model)


@pytest.mark.parametrize("error", [httpx.ConnectError("no route"), OfflineModeIsEnabled("offline")])
def test_without_the_hub_a_head_is_read_from_the_cache_alone(hub: Hub, model: TargetModel, error: Exception) -> None:
    hub.error = error
    read_head(HEAD, model)
    assert hub.cached_only
    assert hub.revisions == {HEAD.revision}
    (hub.folder / "model.safetensors").unlink()
    (hub.folder / "pytorch_model.bin").unlink()
    with pytest.raises(TargetUnavailable, match=r"hub cannot be reached and model\.safetensors is not cached"):
        read_head(HEAD, model)


def test_a_head_that_does_not_exist_is_named(hub: Hub, model: TargetModel) -> None:
    hub.error = RepositoryNotFoundError("404", response=httpx.Response(404, request=httpx.Request("GET", "http://hub")))
    with pytest.raises(TargetUnavailable, match="somebody/head does not exist or needs access"):
        read_head(HEAD, model)
