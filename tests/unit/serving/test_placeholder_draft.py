"""A pod without a draft starts its engine with a placeholder of the sizes that the trainer gives the lineage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from aurora_api.v1alpha1.draft import DraftSpec, PublishedHead
from aurora_api.v1alpha1.target import TargetSpec
from aurora_protocol.draft_records import CheckpointManifest, Lineage
from aurora_protocol.pod_settings import ServingSettings
from aurora_runtime.engine.draft_file_check import WEIGHTS, check_draft
from aurora_runtime.engine.speculation_settings import PLACEHOLDER_VERSION
from aurora_runtime.errors import DraftRefused, TargetUnavailable
from aurora_runtime.serving.placeholder_draft import ensure_draft
from aurora_runtime.serving.pod_files import MANIFEST, PodFolder
from aurora_runtime.training import lineage
from aurora_runtime.training.model import initial_draft
from aurora_runtime.training.model.draft import DraftModel
from aurora_runtime.training.target.target_model import TargetModel
from tests.unit.serving.engine_starts import settings
from tests.unit.training import tiny
from tests.unit.training.heads import published


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TargetModel:
    return tiny.target(tmp_path_factory.mktemp("target"))


@pytest.fixture
def folder(tmp_path: Path) -> PodFolder:
    made = PodFolder(tmp_path / "state")
    made.drafts.mkdir(parents=True)
    return made


def of_pod(model: TargetModel, draft: DraftSpec = tiny.DRAFT_SPEC) -> ServingSettings:
    return settings().model_copy(update={"target": TargetSpec(model=model.identity.model), "draft": draft})


def trained_lineage(model: TargetModel, draft: DraftSpec = tiny.DRAFT_SPEC) -> Lineage:
    """The lineage that the trainer creates."""
    return lineage.open_lineage(tiny.memory_registry()[0], model, draft, lineage.utc_now)


def narrow_head(model: TargetModel, path: Path) -> PublishedHead:
    """A published head with other sizes than the target's layer."""
    config = replace(initial_draft.draft_config(model, 256), intermediate_size=64, heads=2, kv_heads=1)
    fields, tensors = published.specforge(DraftModel(config, model.embedding), torch.arange(256), model)
    sizes = {"intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    return published.write(path, (fields | sizes, tensors))


def version_of(folder: PodFolder) -> int:
    return CheckpointManifest.from_json((folder.current / MANIFEST).read_bytes()).version


def test_the_placeholder_fits_the_lineage_that_the_trainer_creates_later(model: TargetModel, folder: PodFolder) -> None:
    ensure_draft(folder, of_pod(model))
    assert version_of(folder) == PLACEHOLDER_VERSION
    check_draft(folder.current, trained_lineage(model))
    tensors = load_file(folder.current / WEIGHTS)
    assert not any(tensor.any() for name, tensor in tensors.items() if name != "t2d")
    assert tensors["t2d"].nonzero().flatten().tolist() == list(range(tiny.DRAFT_VOCAB))


def test_a_head_that_can_be_read_decides_the_sizes_and_any_other_leaves_the_defaults(
    model: TargetModel, folder: PodFolder, tmp_path: Path
) -> None:
    spec = DraftSpec(initial=narrow_head(model, tmp_path / "head"))
    of_head, of_target = trained_lineage(model, spec), trained_lineage(model, DraftSpec())
    ensure_draft(folder, of_pod(model, spec))
    check_draft(folder.current, of_head)
    (tmp_path / "head" / "config.json").write_text('{"architectures": ["Other"]}')
    ensure_draft(folder, of_pod(model, spec))
    check_draft(folder.current, of_target)
    folder.lineage.write_bytes(of_head.to_json())
    ensure_draft(folder, of_pod(model, spec))
    check_draft(folder.current, of_head)


def test_a_draft_is_kept_and_a_damaged_one_is_not(model: TargetModel, folder: PodFolder) -> None:
    ensure_draft(folder, of_pod(model))
    manifest = CheckpointManifest.from_json((folder.current / MANIFEST).read_bytes())
    (folder.current / MANIFEST).write_bytes(manifest.model_copy(update={"version": 4}).to_json())
    (folder.current / WEIGHTS).write_bytes(b"the weights of version 4")
    ensure_draft(folder, of_pod(model))
    assert version_of(folder) == 4
    (folder.current / MANIFEST).write_text("")
    ensure_draft(folder, of_pod(model))
    assert version_of(folder) == PLACEHOLDER_VERSION
    with pytest.raises(DraftRefused):
        check_draft(folder.current, trained_lineage(model, DraftSpec(vocab_size=256)))


def test_without_the_targets_configuration_there_is_no_placeholder(folder: PodFolder, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    absent = settings().model_copy(update={"target": TargetSpec(model=str(tmp_path / "empty"))})
    with pytest.raises(TargetUnavailable, match=r"config\.json"):
        ensure_draft(folder, absent)
    assert not folder.current.exists()
